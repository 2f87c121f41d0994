//! The command line and the remote door share their TLS and key code here.

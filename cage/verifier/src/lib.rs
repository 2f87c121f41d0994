//! The library that decides.

//! Every byte that crosses a boundary.

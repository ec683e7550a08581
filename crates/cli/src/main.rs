//! The ounce command.
fn main() {}

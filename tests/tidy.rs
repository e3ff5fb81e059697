//! Keeps the house rules that no compiler checks.

#[test]
fn placeholder() {}

//! lab

pub mod report;

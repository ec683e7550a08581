//! What the binary says about itself.

use crate::support::{run, stdout};
use std::fmt::Write as _;

const COMMANDS: &[&[&str]] = &[
    &["demo"],
    &["inspect"],
    &["generate"],
    &["chat"],
    &["train"],
    &["merge"],
    &["convert"],
    &["eval"],
    &["logits"],
    &["verify"],
    &["bench"],
    &["bench", "kernels"],
    &["bench", "train"],
    &["bench", "decode"],
    &["bench", "prefill"],
    &["bench", "attention"],
    &["bench", "checkpoint"],
    &["reproduce"],
    &["data"],
    &["data", "toy"],
    &["data", "length"],
    &["doctor"],
];

#[test]
fn help_of_every_command() {
    let mut all = stdout(&["--help"]);
    for words in COMMANDS {
        let mut args = words.to_vec();
        args.push("--help");
        let _ = writeln!(all, "\n======== ounce {}\n{}", args.join(" "), stdout(&args).trim_end());
    }
    insta::assert_snapshot!(all);
}

/// A command that is added without a line above would otherwise have no snapshot.
#[test]
fn the_list_above_is_complete() {
    let help = stdout(&["--help"]);
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // Deeper lines are wrapped descriptions.
    for line in listed.lines().filter(|l| !l.starts_with("   ")) {
        let name = line.split_whitespace().next().unwrap();
        assert!(name == "help" || COMMANDS.iter().any(|c| c[0] == name), "{name}");
    }
}

#[test]
fn version_is_data() {
    assert_eq!(stdout(&["--version"]), format!("ounce {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn without_a_command_there_is_help_and_it_is_the_users_input() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Usage: ounce"));
}

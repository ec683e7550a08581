//! Why a pickle is not read, and what its owner can do.

pub(super) const DAMAGED: &str =
    "the file is damaged, or not a weights-only PyTorch file; download it again, or export safetensors";
pub(super) const STRANGE: &str =
    "only ordinary tensors in memory are read, nothing is executed; save a plain state_dict, or export safetensors";
pub(super) const PACKED: &str =
    "PyTorch does not compress; write it again: torch.save(torch.load(FILE, weights_only=True), FILE)";
pub(super) const UNSAFE: &str = "only dictionaries of tensors are read, nothing is executed; do not trust this file";

/// A rule that the file breaks. Made from a text alone, it means damage.
pub(super) struct Refusal {
    pub(super) rule: String,
    pub(super) hint: &'static str,
}

impl Refusal {
    /// The same, said of a part of the file.
    pub(super) fn within(self, part: &str) -> Self {
        Self {
            rule: format!("{part}: {}", self.rule),
            hint: self.hint,
        }
    }
}

impl From<String> for Refusal {
    fn from(rule: String) -> Self {
        Self { rule, hint: DAMAGED }
    }
}

impl From<&str> for Refusal {
    fn from(rule: &str) -> Self {
        rule.to_owned().into()
    }
}

/// What reading one thing comes to.
pub(super) type Step<T> = std::result::Result<T, Refusal>;

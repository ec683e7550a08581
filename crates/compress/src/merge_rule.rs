//! How the members of a group become one expert.
//!
//! Owns the weights of the members and the running average of their tensors. A member's tensors are added one after
//! another, so only one expert of a group must be resident beside the result. It must not know files or dtypes: callers
//! widen to f32, add, and round once at the end.
//!
//! Symbols: group C, usage `f_i` (how often expert i was selected on the calibration data), merged tensor
//! `W = sum_{i in C} f_i W_i / sum_{i in C} f_i`.
//!
//! Nothing is added to the denominator. The published code adds 1e-7, which shrinks rarely used groups by up to a few
//! percent and turns a group without any use into zeros; here such a group falls back to the plain average. The sum is
//! kept as a running mean, `W += (W_i - W) f_i / sum_so_far`: a single member and exact copies come out bit for bit.

/// Where the weights of the members come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weighting {
    /// Share of the selections on the calibration data (the paper's default).
    #[default]
    Frequency,
    /// All alike.
    Average,
}

/// The rule for one merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MergeRule {
    /// The members' weights.
    pub weighting: Weighting,
    /// Whether hidden neurons are first matched one to one to those of the lowest member, see [`crate::align`].
    pub align: bool,
}

/// Why a group could not be merged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// A member without a usage entry.
    #[error(
        "expert {expert} has no usage count, there are {given} (hint: usage has one entry per expert of the layer)"
    )]
    MissingUsage {
        /// The member.
        expert: usize,
        /// Entries given.
        given: usize,
    },
    /// A weight that is negative, NaN or infinite.
    #[error("expert {expert} has the weight {weight} (hint: weights are finite and not negative)")]
    BadWeight {
        /// The member.
        expert: usize,
        /// Its weight.
        weight: f64,
    },
    /// Tensors of different size.
    #[error("a tensor of {given} values was added to a group of {expected} (hint: merged experts must have one shape)")]
    Length {
        /// Values of the group's tensor.
        expected: usize,
        /// Values of the added one.
        given: usize,
    },
    /// A group to which nothing with a weight was added.
    #[error(
        "a group has no member with a weight above 0 (hint: add its experts with the weights of `MergeRule::weights`)"
    )]
    Empty,
}

impl MergeRule {
    /// `[members]` weights, in the order of `members`, not normalised; `usage [n]` covers the whole layer.
    ///
    /// At least one weight is above 0: a group that was never used gets the plain average.
    ///
    /// # Errors
    /// [`MergeError::MissingUsage`], [`MergeError::BadWeight`], [`MergeError::Empty`] for no members.
    pub fn weights(&self, members: &[usize], usage: &[f64]) -> Result<Vec<f64>, MergeError> {
        if members.is_empty() {
            return Err(MergeError::Empty);
        }
        if self.weighting == Weighting::Average {
            return Ok(vec![1.0; members.len()]);
        }
        let mut weights = Vec::with_capacity(members.len());
        for &expert in members {
            let &weight = usage.get(expert).ok_or(MergeError::MissingUsage {
                expert,
                given: usage.len(),
            })?;
            check_weight(expert, weight)?;
            weights.push(weight);
        }
        if weights.iter().all(|&weight| weight == 0.0) {
            weights.fill(1.0);
        }
        Ok(weights)
    }
}

fn check_weight(expert: usize, weight: f64) -> Result<(), MergeError> {
    if weight.is_finite() && weight >= 0.0 {
        Ok(())
    } else {
        Err(MergeError::BadWeight { expert, weight })
    }
}

/// Running weighted mean of one tensor over the members of a group, in f32.
#[derive(Debug, Clone)]
pub struct TensorMean {
    mean: Vec<f32>,
    weight: f64,
}

impl TensorMean {
    /// For a tensor of `len` values.
    pub fn new(len: usize) -> Self {
        Self {
            mean: vec![0.0; len],
            weight: 0.0,
        }
    }

    /// Adds the tensor of member `expert` (the id is for messages only). A weight of 0 adds nothing.
    ///
    /// # Errors
    /// [`MergeError::Length`], [`MergeError::BadWeight`].
    pub fn add(&mut self, expert: usize, tensor: &[f32], weight: f64) -> Result<(), MergeError> {
        if tensor.len() != self.mean.len() {
            return Err(MergeError::Length {
                expected: self.mean.len(),
                given: tensor.len(),
            });
        }
        check_weight(expert, weight)?;
        if weight == 0.0 {
            return Ok(());
        }
        if self.weight == 0.0 {
            self.mean.copy_from_slice(tensor);
        } else {
            accumulate(&mut self.mean, tensor, (weight / (self.weight + weight)) as f32);
        }
        self.weight += weight;
        Ok(())
    }

    /// The merged tensor.
    ///
    /// # Errors
    /// [`MergeError::Empty`] when nothing was added.
    pub fn finish(self) -> Result<Vec<f32>, MergeError> {
        if self.weight == 0.0 {
            Err(MergeError::Empty)
        } else {
            Ok(self.mean)
        }
    }
}

/// Moves `mean` towards `tensor` by the given share of their difference, in [0, 1].
fn accumulate(mean: &mut [f32], tensor: &[f32], share: f32) {
    for (to, &from) in mean.iter_mut().zip(tensor) {
        *to += (from - *to) * share;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREQUENCY: MergeRule = MergeRule {
        weighting: Weighting::Frequency,
        align: false,
    };

    fn merge(tensors: &[&[f32]], weights: &[f64]) -> Vec<f32> {
        let mut mean = TensorMean::new(tensors[0].len());
        for (expert, (tensor, &weight)) in tensors.iter().zip(weights).enumerate() {
            mean.add(expert, tensor, weight).unwrap();
        }
        mean.finish().unwrap()
    }

    #[test]
    fn weights_follow_usage_and_fall_back_to_the_plain_average() {
        let usage = [0.0, 3.0, 0.0, 1.0];
        assert_eq!(FREQUENCY.weights(&[1, 2, 3], &usage), Ok(vec![3.0, 0.0, 1.0]));
        assert_eq!(FREQUENCY.weights(&[0, 2], &usage), Ok(vec![1.0, 1.0]));
        let average = MergeRule {
            weighting: Weighting::Average,
            align: false,
        };
        assert_eq!(average.weights(&[1, 2], &usage), Ok(vec![1.0, 1.0]));
        assert_eq!(
            FREQUENCY.weights(&[4], &usage),
            Err(MergeError::MissingUsage { expert: 4, given: 4 })
        );
        assert!(matches!(
            FREQUENCY.weights(&[0], &[-1.0]),
            Err(MergeError::BadWeight { .. })
        ));
        assert!(matches!(
            FREQUENCY.weights(&[0], &[f64::NAN]),
            Err(MergeError::BadWeight { .. })
        ));
        assert_eq!(FREQUENCY.weights(&[], &usage), Err(MergeError::Empty));
    }

    #[test]
    fn a_rarely_used_singleton_and_copies_keep_every_bit() {
        let tensor = [0.1f32, -0.0, 3.3e-39, -7.7e30];
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&merge(&[&tensor], &[3.8e-6])), bits(&tensor));
        assert_eq!(merge(&[&tensor, &tensor, &tensor], &[1.0, 7.0, 3.0]), tensor);
        assert_eq!(bits(&merge(&[&[9.0; 4], &tensor], &[0.0, 2.0])), bits(&tensor));
    }

    #[test]
    fn the_mean_is_weighted() {
        let merged = merge(&[&[1.0], &[2.0], &[4.0]], &[1.0, 1.0, 2.0]);
        assert!((merged[0] - 2.75).abs() < 1e-6);
    }

    #[test]
    fn misuse_is_refused() {
        let mut mean = TensorMean::new(2);
        assert_eq!(
            mean.add(0, &[1.0], 1.0),
            Err(MergeError::Length { expected: 2, given: 1 })
        );
        assert!(matches!(
            mean.add(3, &[1.0, 1.0], -1.0),
            Err(MergeError::BadWeight { expert: 3, .. })
        ));
        assert_eq!(TensorMean::new(2).finish(), Err(MergeError::Empty));
    }
}

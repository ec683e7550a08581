//! One-to-one matching of the hidden neurons of two experts before their weights are averaged.
//!
//! Owns the similarity of neurons, the assignment and its application to weights. The hidden neurons of a gated
//! feed-forward block can be renumbered without changing its function, so two experts may compute the same and still
//! average to nonsense. A neuron is the triple of its gate row, up row and down column; the neurons of a member are
//! matched to those of a reference expert so that the sum of the triples' dot products is largest.
//!
//! The published `fix-dom` rule assigns many neurons to one and averages their down columns, which loses mass even for
//! perfectly permuted copies. A permutation loses nothing there. It must not know which experts are grouped.
//!
//! Symbols: I expert width, d model width. Cost: 3 I^2 d multiplications for the similarities, 4 I^2 bytes beside the
//! weights, which are read as they are stored, and at most I^3 steps for the assignment (far fewer when the matching is
//! clear). Widths of a few thousand are practical.

use ounce_kernels::{Compute, Data, Gemm, Mat, gemm};
use ounce_tensor::{Tensor, TensorError};

/// The three matrices of a gated expert, of any float dtype.
#[derive(Debug, Clone, Copy)]
pub struct Expert<'a> {
    /// `[I, d]`.
    pub gate: &'a Tensor,
    /// `[I, d]`.
    pub up: &'a Tensor,
    /// `[d, I]`.
    pub down: &'a Tensor,
}

/// Why two experts could not be aligned.
#[derive(Debug, thiserror::Error)]
pub enum AlignError {
    /// The matrices are not those of one expert.
    #[error(
        "an expert has gate {gate:?}, up {up:?} and down {down:?} (hint: gate and up are [width, d], down is [d, width])"
    )]
    Shape {
        /// Shape of the gate matrix.
        gate: Vec<usize>,
        /// Shape of the up matrix.
        up: Vec<usize>,
        /// Shape of the down matrix.
        down: Vec<usize>,
    },
    /// Two experts of different shape.
    #[error(
        "experts with gates {reference:?} and {member:?} cannot be aligned (hint: a group's experts must have one shape)"
    )]
    Mismatch {
        /// Shape of the reference's gate.
        reference: Vec<usize>,
        /// Shape of the member's.
        member: Vec<usize>,
    },
    /// A weight is NaN or infinite.
    #[error("neuron similarities are not finite (hint: the checkpoint holds NaN or infinite expert weights)")]
    NotFinite,
    /// A weight that is no float.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl Expert<'_> {
    /// I and d.
    fn check(&self) -> Result<(usize, usize), AlignError> {
        match (self.gate.shape(), self.up.shape(), self.down.shape()) {
            (&[width, d], up, down) if width > 0 && up == [width, d] && down == [d, width] => Ok((width, d)),
            (gate, up, down) => Err(AlignError::Shape {
                gate: gate.to_vec(),
                up: up.to_vec(),
                down: down.to_vec(),
            }),
        }
    }
}

/// A matrix `[rows, columns]` by its strides.
fn operand(data: Data<'_>, row_stride: usize, col_stride: usize) -> Mat<'_> {
    Mat {
        data,
        row_stride,
        col_stride,
    }
}

/// `[I, I]`: for each neuron of `member` and each of `reference`, minus the dot product of their triples, in f32.
fn costs(reference: Expert<'_>, member: Expert<'_>, width: usize, d: usize) -> Result<Vec<f32>, AlignError> {
    const OP: &str = "align";
    let mut similar = vec![0f32; width * width];
    let mut product = |a, b| {
        let c = &mut similar;
        let (m, n, k, ldc) = (width, width, d, width);
        let accumulate = true;
        gemm(
            &mut [Gemm {
                m,
                n,
                k,
                a,
                b,
                c,
                ldc,
                accumulate,
            }],
            Compute::F32,
        );
    };
    for (ours, theirs) in [(member.gate, reference.gate), (member.up, reference.up)] {
        product(operand(ours.data(OP)?, d, 1), operand(theirs.data(OP)?, 1, d));
    }
    // A neuron's down weights are a column: member transposed times reference.
    product(
        operand(member.down.data(OP)?, 1, width),
        operand(reference.down.data(OP)?, width, 1),
    );
    for value in &mut similar {
        *value = -*value;
    }
    Ok(similar)
}

/// A permutation: neuron i of the member takes the place of neuron `places()[i]` of the reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alignment {
    places: Vec<usize>,
}

impl Alignment {
    /// The best one-to-one matching of `member` to `reference`.
    ///
    /// # Errors
    /// Shapes that do not fit, or weights that are not finite.
    pub fn find(reference: Expert<'_>, member: Expert<'_>) -> Result<Self, AlignError> {
        let (width, d) = reference.check()?;
        if member.check()? != (width, d) {
            return Err(AlignError::Mismatch {
                reference: reference.gate.shape().to_vec(),
                member: member.gate.shape().to_vec(),
            });
        }
        let cost = costs(reference, member, width, d)?;
        if cost.iter().any(|value| !value.is_finite()) {
            return Err(AlignError::NotFinite);
        }
        Ok(Self {
            places: cheapest_assignment(&cost, width),
        })
    }

    /// `[I]`: place of each neuron of the member in the reference.
    pub fn places(&self) -> &[usize] {
        &self.places
    }

    /// Reorders the rows of a gate or up matrix `[I, d]` of the member.
    ///
    /// # Panics
    /// If `matrix` has no whole rows for this width; [`Alignment::find`] has checked the member's own matrices.
    pub fn rows(&self, matrix: &[f32]) -> Vec<f32> {
        let width = self.places.len();
        assert!(
            matrix.len().is_multiple_of(width),
            "invariant: a matrix of the aligned expert has whole rows"
        );
        let d = matrix.len() / width;
        let mut out = vec![0.0; matrix.len()];
        for (row, &place) in matrix.chunks_exact(d.max(1)).zip(&self.places) {
            out[place * d..(place + 1) * d].copy_from_slice(row);
        }
        out
    }

    /// Reorders the columns of a down matrix `[d, I]` of the member.
    ///
    /// # Panics
    /// As [`Alignment::rows`].
    pub fn columns(&self, matrix: &[f32]) -> Vec<f32> {
        let width = self.places.len();
        assert!(
            matrix.len().is_multiple_of(width),
            "invariant: a matrix of the aligned expert has whole rows"
        );
        let mut out = vec![0.0; matrix.len()];
        for (to, from) in out.chunks_exact_mut(width).zip(matrix.chunks_exact(width)) {
            for (&value, &place) in from.iter().zip(&self.places) {
                to[place] = value;
            }
        }
        out
    }
}

/// Marks a column without a row, and the start of a path.
const FREE: usize = usize::MAX;

/// The column of each row in the assignment of least total cost; `cost [n, n]` row-major, finite.
///
/// Shortest augmenting paths with dual potentials (Jonker and Volgenant 1987, as in the textbooks): rows enter one by
/// one, each along the cheapest path of reduced costs to a free column, found like Dijkstra's. O(n^3) at worst. Ties go
/// to the lower column.
pub fn cheapest_assignment<T: Copy + Into<f64>>(cost: &[T], n: usize) -> Vec<usize> {
    assert_eq!(cost.len(), n * n, "invariant: an assignment needs a square cost matrix");
    let mut row_price = vec![0.0; n];
    let mut column_price = vec![0.0; n];
    let mut row_of = vec![FREE; n];
    for start in 0..n {
        let mut distance = vec![f64::INFINITY; n];
        // The column before this one on the cheapest path; FREE where the path starts at the new row itself.
        let mut before = vec![FREE; n];
        let mut closed = vec![false; n];
        let (mut row, mut reached, mut at) = (start, 0.0, FREE);
        let end = loop {
            let mut next = FREE;
            for column in 0..n {
                if closed[column] {
                    continue;
                }
                let through = reached + cost[row * n + column].into() - row_price[row] - column_price[column];
                if through < distance[column] {
                    distance[column] = through;
                    before[column] = at;
                }
                if next == FREE || distance[column] < distance[next] {
                    next = column;
                }
            }
            reached = distance[next];
            closed[next] = true;
            at = next;
            if row_of[next] == FREE {
                break next;
            }
            row = row_of[next];
        };
        // Prices change so that every edge on the path has reduced cost 0 and none becomes negative.
        row_price[start] += reached;
        for column in 0..n {
            if closed[column] && column != end {
                row_price[row_of[column]] += reached - distance[column];
                column_price[column] -= reached - distance[column];
            }
        }
        let mut column = end;
        while before[column] != FREE {
            row_of[column] = row_of[before[column]];
            column = before[column];
        }
        row_of[column] = start;
    }
    let mut column_of = vec![0; n];
    for (column, &row) in row_of.iter().enumerate() {
        column_of[row] = column;
    }
    column_of
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(cost: &[f64], n: usize, assignment: &[usize]) -> f64 {
        assignment
            .iter()
            .enumerate()
            .map(|(row, &column)| cost[row * n + column])
            .sum()
    }

    fn cheapest_by_trying(cost: &[f64], n: usize, taken: &mut Vec<usize>) -> f64 {
        if taken.len() == n {
            return total(cost, n, taken);
        }
        let mut best = f64::INFINITY;
        for column in 0..n {
            if !taken.contains(&column) {
                taken.push(column);
                best = best.min(cheapest_by_trying(cost, n, taken));
                taken.pop();
            }
        }
        best
    }

    #[test]
    fn assignments_are_as_cheap_as_the_best_of_all_permutations() {
        let mut state = 12345u64;
        for n in 1..=6 {
            for round in 0..30 {
                let cost: Vec<f64> = (0..n * n)
                    .map(|_| {
                        state = state
                            .wrapping_mul(6364136223846793005)
                            .wrapping_add(1442695040888963407);
                        // Few distinct values in every other round: many ties.
                        let value = (state >> 40) as f64 / f64::from(1 << 24);
                        if round % 2 == 0 {
                            (value * 4.0).floor() - 1.0
                        } else {
                            value * 20.0 - 10.0
                        }
                    })
                    .collect();
                let found = cheapest_assignment(&cost, n);
                let mut columns = found.clone();
                columns.sort_unstable();
                assert_eq!(columns, (0..n).collect::<Vec<_>>());
                let best = cheapest_by_trying(&cost, n, &mut Vec::new());
                assert!((total(&cost, n, &found) - best).abs() < 1e-9, "{cost:?}");
            }
        }
    }

    #[test]
    fn a_greedy_choice_is_not_good_enough() {
        // Taking the smallest entry first costs 1 + 100; the best costs 2 + 3.
        assert_eq!(cheapest_assignment(&[1.0, 2.0, 3.0, 100.0], 2), [1, 0]);
    }

    #[test]
    fn unfit_experts_are_refused() {
        let matrix = |rows, cols| Tensor::new(vec![1.0f32; rows * cols], &[rows, cols]).unwrap();
        let (wide, tall, small) = (matrix(3, 2), matrix(2, 3), matrix(2, 2));
        let good = Expert {
            gate: &wide,
            up: &wide,
            down: &tall,
        };
        let bad = Expert { down: &wide, ..good };
        let narrow = Expert {
            gate: &small,
            up: &small,
            down: &small,
        };
        let nan = Tensor::new(vec![f32::NAN; 6], &[3, 2]).unwrap();
        let broken = Expert { gate: &nan, ..good };
        assert!(Alignment::find(good, good).is_ok());
        assert!(matches!(Alignment::find(good, bad), Err(AlignError::Shape { .. })));
        assert!(matches!(
            Alignment::find(good, narrow),
            Err(AlignError::Mismatch { .. })
        ));
        assert!(matches!(Alignment::find(good, broken), Err(AlignError::NotFinite)));
    }

    /// Neurons that differ in their down weights alone are told apart by them.
    #[test]
    fn a_permuted_expert_is_matched_neuron_by_neuron() {
        let gate = Tensor::new(vec![1.0f32; 6], &[3, 2]).unwrap();
        let down = Tensor::new(vec![1.0f32, 2.0, 3.0, 3.0, -1.0, 0.5], &[2, 3]).unwrap();
        let turned = Tensor::new(vec![3.0f32, 1.0, 2.0, 0.5, 3.0, -1.0], &[2, 3]).unwrap();
        let expert = |down| Expert {
            gate: &gate,
            up: &gate,
            down,
        };
        let found = Alignment::find(expert(&down), expert(&turned)).unwrap();
        assert_eq!(found.places(), [2, 0, 1]);
        assert_eq!(found.columns(&turned.to_f32()), down.to_f32());
    }
}

//! Distances between the experts of one layer.
//!
//! Owns the `[n, n]` squared distances and `[n]` squared norms of n feature vectors, and how they are summed up. A
//! feature vector may be far larger than memory (all weights of an expert) or arrive token by token (router logits), so
//! features are streamed in pieces and only the sums stay. Everything after this module (linkage, dominant member,
//! cosine) works on these sums and never sees a feature again.
//!
//! Differences are taken before squaring, in f64: expanding `|a|^2 + |b|^2 - 2ab` loses all digits when experts are
//! nearly identical, which is exactly the case that merging is about.

/// Why distances could not be formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// No expert at all.
    #[error("a layer with 0 experts cannot be compared (hint: only mixture-of-experts layers have features)")]
    Empty,
    /// The piece does not hold one slice per expert.
    #[error("features of {given} experts were given to a comparison of {expected} (hint: pass one row per expert)")]
    ExpertCount {
        /// Experts of the accumulator.
        expected: usize,
        /// Rows of the piece.
        given: usize,
    },
    /// Rows of one piece differ in length.
    #[error(
        "expert {expert} has {given} features where expert 0 has {expected} (hint: all experts of a layer must have one shape)"
    )]
    RowLength {
        /// The odd expert.
        expert: usize,
        /// Length of the row of expert 0.
        expected: usize,
        /// Length of this expert's row.
        given: usize,
    },
    /// A matrix whose size is no multiple of its row count.
    #[error("a matrix of {len} values has no whole rows of {experts} (hint: check the shape of the statistics)")]
    Ragged {
        /// Number of values.
        len: usize,
        /// Number of experts.
        experts: usize,
    },
    /// NaN or infinity among the features.
    #[error(
        "the features of expert {expert} are not finite (hint: the model overflows on the calibration data; try f32, or other text)"
    )]
    NotFinite {
        /// The first expert concerned.
        expert: usize,
    },
}

/// Features handled together, so that a piece of every expert stays in the first-level cache.
const BLOCK: usize = 256;
const LANES: usize = 8;

/// Streaming sums of squared differences between n experts.
///
/// Pieces are added in the order of the features; the result depends on the cut into pieces only by rounding (f64).
#[derive(Debug, Clone)]
pub struct PairAccumulator {
    n: usize,
    /// Row-major `[n, n]`, only the part right of the diagonal is used while streaming.
    squared: Vec<f64>,
    norm: Vec<f64>,
}

impl PairAccumulator {
    /// Sums for `n` experts, all zero.
    ///
    /// # Errors
    /// [`GeometryError::Empty`] for `n = 0`.
    pub fn new(n: usize) -> Result<Self, GeometryError> {
        if n == 0 {
            return Err(GeometryError::Empty);
        }
        Ok(Self {
            n,
            squared: vec![0.0; n * n],
            norm: vec![0.0; n],
        })
    }

    /// Adds further features: `rows[i]` holds the same piece of the feature vector for every expert i.
    ///
    /// # Errors
    /// A wrong number of rows, or rows of different length.
    pub fn add_rows<T: Copy + Into<f64>>(&mut self, rows: &[&[T]]) -> Result<(), GeometryError> {
        if rows.len() != self.n {
            return Err(GeometryError::ExpertCount {
                expected: self.n,
                given: rows.len(),
            });
        }
        let len = rows[0].len();
        if let Some(expert) = rows.iter().position(|row| row.len() != len) {
            return Err(GeometryError::RowLength {
                expert,
                expected: len,
                given: rows[expert].len(),
            });
        }
        let mut block = vec![0.0; self.n * BLOCK];
        for start in (0..len).step_by(BLOCK) {
            let width = BLOCK.min(len - start);
            for (wide, row) in block.chunks_exact_mut(BLOCK).zip(rows) {
                for (to, &from) in wide.iter_mut().zip(&row[start..start + width]) {
                    *to = from.into();
                }
            }
            for i in 0..self.n {
                let a = &block[i * BLOCK..][..width];
                self.norm[i] += lane_sum(a, a, |x, _| x * x);
                for j in i + 1..self.n {
                    let b = &block[j * BLOCK..][..width];
                    self.squared[i * self.n + j] += lane_sum(a, b, |x, y| (x - y) * (x - y));
                }
            }
        }
        Ok(())
    }

    /// Adds features stored the other way round: `table` is `[t, n]` row-major and each of its t rows is one more
    /// feature of every expert. Router logits have this shape (a row per token).
    ///
    /// # Errors
    /// [`GeometryError::Ragged`] when the length is no multiple of n.
    pub fn add_columns<T: Copy + Into<f64>>(&mut self, table: &[T]) -> Result<(), GeometryError> {
        if !table.len().is_multiple_of(self.n) {
            return Err(GeometryError::Ragged {
                len: table.len(),
                experts: self.n,
            });
        }
        let mut row = vec![0.0; self.n];
        for raw in table.chunks_exact(self.n) {
            for (to, &from) in row.iter_mut().zip(raw) {
                *to = from.into();
            }
            for i in 0..self.n {
                self.norm[i] += row[i] * row[i];
                for j in i + 1..self.n {
                    let difference = row[i] - row[j];
                    self.squared[i * self.n + j] += difference * difference;
                }
            }
        }
        Ok(())
    }

    /// Closes the sums.
    ///
    /// # Errors
    /// [`GeometryError::NotFinite`] if a feature was NaN or infinite: such a layer must not be merged silently.
    pub fn finish(mut self) -> Result<Geometry, GeometryError> {
        if let Some(expert) = self.norm.iter().position(|norm| !norm.is_finite()) {
            return Err(GeometryError::NotFinite { expert });
        }
        for i in 0..self.n {
            for j in i + 1..self.n {
                let value = self.squared[i * self.n + j];
                if !value.is_finite() {
                    return Err(GeometryError::NotFinite { expert: i });
                }
                self.squared[j * self.n + i] = value;
            }
        }
        Ok(Geometry {
            n: self.n,
            squared: self.squared,
            norm: self.norm,
        })
    }
}

/// Sum of `f(a, b)` in eight fixed lanes: vectorises, and the order never depends on anything but the length.
fn lane_sum(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (heads_a, tail_a) = a.as_chunks::<LANES>();
    let (heads_b, tail_b) = b.as_chunks::<LANES>();
    for (x, y) in heads_a.iter().zip(heads_b) {
        for lane in 0..LANES {
            lanes[lane] += f(x[lane], y[lane]);
        }
    }
    let tail: f64 = tail_a.iter().zip(tail_b).map(|(&x, &y)| f(x, y)).sum();
    lanes.iter().sum::<f64>() + tail
}

/// Squared distances and norms of n feature vectors: all that clustering needs to know about a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    n: usize,
    squared: Vec<f64>,
    norm: Vec<f64>,
}

impl Geometry {
    /// From a resident matrix `points [n, d]`, row-major.
    ///
    /// # Errors
    /// No experts, a length that is no multiple of `n`, or a value that is not finite.
    pub fn from_points<T: Copy + Into<f64>>(points: &[T], n: usize) -> Result<Self, GeometryError> {
        let mut sums = PairAccumulator::new(n)?;
        if !points.len().is_multiple_of(n) {
            return Err(GeometryError::Ragged {
                len: points.len(),
                experts: n,
            });
        }
        let d = points.len() / n;
        let rows: Vec<&[T]> = (0..n).map(|i| &points[i * d..(i + 1) * d]).collect();
        sums.add_rows(&rows)?;
        sums.finish()
    }

    /// Squared distances `[n, n]` and norms `[n]`, to be kept in a file.
    pub(crate) fn parts(&self) -> (&[f64], &[f64]) {
        (&self.squared, &self.norm)
    }

    /// What [`Geometry::parts`] gave; `None` if the lengths do not fit each other.
    pub(crate) fn from_parts(squared: Vec<f64>, norm: Vec<f64>) -> Option<Self> {
        let n = norm.len();
        (squared.len() == n * n).then_some(Self { n, squared, norm })
    }

    /// From a resident table `[t, n]`, row-major, whose columns are the feature vectors.
    ///
    /// # Errors
    /// As [`Geometry::from_points`].
    pub fn from_columns<T: Copy + Into<f64>>(table: &[T], n: usize) -> Result<Self, GeometryError> {
        let mut sums = PairAccumulator::new(n)?;
        sums.add_columns(table)?;
        sums.finish()
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.n
    }

    /// Squared Euclidean distance of experts `i` and `j`.
    pub fn squared(&self, i: usize, j: usize) -> f64 {
        self.squared[i * self.n + j]
    }

    /// Euclidean distance of experts `i` and `j`.
    pub fn distance(&self, i: usize, j: usize) -> f64 {
        self.squared(i, j).sqrt()
    }

    /// Cosine of the angle between experts `i` and `j`; 0 if one of them is the zero vector.
    pub fn cosine(&self, i: usize, j: usize) -> f64 {
        let scale = (self.norm[i] * self.norm[j]).sqrt();
        if scale == 0.0 {
            return 0.0;
        }
        // The dot product from the distance: its absolute error is that of the norms, which is all a cosine can use.
        0.5 * (self.norm[i] + self.norm[j] - self.squared(i, j)) / scale
    }

    /// Squared distance of expert `i` to the feature mean of `members`, from pairwise distances alone:
    /// `mean_j d_ij^2 - (sum_{j<k} d_jk^2) / m^2`.
    pub(crate) fn squared_to_mean(&self, i: usize, members: &[usize]) -> f64 {
        let m = members.len() as f64;
        let to_members: f64 = members.iter().map(|&j| self.squared(i, j)).sum();
        (to_members / m - self.scatter(members) / (m * m)).max(0.0)
    }

    /// Sum of squared distances over the unordered pairs of `members`.
    pub(crate) fn scatter(&self, members: &[usize]) -> f64 {
        members
            .iter()
            .enumerate()
            .flat_map(|(at, &i)| members[at + 1..].iter().map(move |&j| self.squared(i, j)))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_rows_and_columns_agree() {
        let (n, d) = (5, 613);
        let points: Vec<f32> = (0..n * d).map(|i| ((i * 7919 % 1000) as f32).sin()).collect();
        let whole = Geometry::from_points(&points, n).unwrap();
        let mut sums = PairAccumulator::new(n).unwrap();
        for (from, to) in [(0, 100), (100, 101), (101, d)] {
            let rows: Vec<&[f32]> = (0..n).map(|i| &points[i * d + from..i * d + to]).collect();
            sums.add_rows(&rows).unwrap();
        }
        let pieces = sums.finish().unwrap();
        let turned: Vec<f32> = (0..d)
            .flat_map(|k| (0..n).map(move |i| (i, k)))
            .map(|(i, k)| points[i * d + k])
            .collect();
        let columns = Geometry::from_columns(&turned, n).unwrap();
        for i in 0..n {
            for j in 0..n {
                let naive: f64 = (0..d)
                    .map(|k| (f64::from(points[i * d + k]) - f64::from(points[j * d + k])).powi(2))
                    .sum();
                for other in [&whole, &pieces, &columns] {
                    assert!((other.squared(i, j) - naive).abs() <= 1e-12 * naive.max(1.0));
                    assert!((other.cosine(i, j) - whole.cosine(i, j)).abs() < 1e-13);
                }
            }
        }
    }

    #[test]
    fn a_common_offset_costs_no_digits() {
        let near = Geometry::from_points(&[0.0, 0.0, 3e-4, 4e-4], 2).unwrap();
        let far = Geometry::from_points(&[1e6, 1e6, 1e6 + 3e-4, 1e6 + 4e-4], 2).unwrap();
        // Only the rounding of the shifted inputs themselves (1e-10) is left.
        assert!((near.distance(0, 1) - 5e-4).abs() < 1e-18);
        assert!((far.distance(0, 1) - 5e-4).abs() < 1e-9);
    }

    #[test]
    fn distance_to_the_mean_matches_the_definition() {
        let points = [0.0f64, 0.0, 4.0, 0.0, 0.0, 8.0];
        let geometry = Geometry::from_points(&points, 3).unwrap();
        let (x, y) = (4.0 / 3.0, 8.0 / 3.0);
        for i in 0..3 {
            let direct = (points[2 * i] - x).powi(2) + (points[2 * i + 1] - y).powi(2);
            assert!((geometry.squared_to_mean(i, &[0, 1, 2]) - direct).abs() < 1e-13);
        }
    }

    #[test]
    fn bad_features_are_refused() {
        assert_eq!(Geometry::from_points::<f32>(&[], 0), Err(GeometryError::Empty));
        assert_eq!(
            Geometry::from_points(&[1.0; 7], 2),
            Err(GeometryError::Ragged { len: 7, experts: 2 })
        );
        assert_eq!(
            Geometry::from_columns(&[1.0; 7], 2),
            Err(GeometryError::Ragged { len: 7, experts: 2 })
        );
        assert_eq!(
            Geometry::from_points(&[1.0, 2.0, f32::NAN, 1.0], 2),
            Err(GeometryError::NotFinite { expert: 1 })
        );
        let mut sums = PairAccumulator::new(2).unwrap();
        assert!(matches!(
            sums.add_rows(&[&[1.0f32][..]]),
            Err(GeometryError::ExpertCount { .. })
        ));
        assert!(matches!(
            sums.add_rows(&[&[1.0f32][..], &[][..]]),
            Err(GeometryError::RowLength {
                expert: 1,
                expected: 1,
                given: 0
            })
        ));
    }
}

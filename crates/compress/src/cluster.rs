//! Agglomerative clustering of the experts of one layer (HC-SMoE, arXiv 2410.08589).
//!
//! Owns the linkages and the merge order. Start with singletons and merge the two nearest clusters until one is left;
//! the recorded [`Dendrogram`] then answers every number of groups at once. Clustering has no randomness, and its ties
//! are part of the contract: the smallest distance first, then the lexicographically smallest pair, where a cluster is
//! named by its smallest member. It must not know what the features are.
//!
//! Symbols: n experts; `D(A, B)` the linkage distance of clusters A and B; `d(i, j)` the Euclidean distance of experts.
//!
//! What the published code does differently, and why we do not: its complete linkage merges the *farthest* pair first
//! (arg-max instead of arg-min), and its misspelt option name silently runs k-means. Textbook linkages are used here.

use crate::geometry::Geometry;
use crate::grouping::Grouping;

/// Distance between two clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Linkage {
    /// `min d(i, j)` over cross pairs.
    Single,
    /// `max d(i, j)` over cross pairs.
    Complete,
    /// Mean of `d(i, j)` over cross pairs; the default of the paper.
    Average,
    /// `|A||B| / (|A| + |B|) * |mean_A - mean_B|`: the authors' option called ward. The distance is not squared, so it
    /// is not textbook Ward, and merge heights need not grow.
    WardUnsquared,
}

/// Why a number of groups could not be cut out of a dendrogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{groups} groups of {experts} experts were asked for (hint: choose between 1 and {experts})")]
pub struct CutError {
    /// Groups asked for.
    pub groups: usize,
    /// Experts of the layer.
    pub experts: usize,
}

/// One step: the clusters named `kept < absorbed` became one, named `kept`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Merge {
    /// Smallest member of the one cluster, and of the union.
    pub kept: usize,
    /// Smallest member of the other cluster.
    pub absorbed: usize,
    /// Linkage distance at which they merged, in units of the features.
    pub height: f64,
}

/// All n - 1 merges of a layer, in the order in which they happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Dendrogram {
    experts: usize,
    merges: Vec<Merge>,
}

impl Dendrogram {
    /// Number of experts n.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The n - 1 merges.
    pub fn merges(&self) -> &[Merge] {
        &self.merges
    }

    /// The n - 1 merge heights, in merge order (growing, except for [`Linkage::WardUnsquared`]).
    pub fn heights(&self) -> Vec<f64> {
        self.merges.iter().map(|merge| merge.height).collect()
    }

    /// The grouping after n - `groups` merges.
    ///
    /// # Errors
    /// [`CutError`] unless `1 <= groups <= n`.
    pub fn cut(&self, groups: usize) -> Result<Grouping, CutError> {
        if groups == 0 || groups > self.experts {
            return Err(CutError {
                groups,
                experts: self.experts,
            });
        }
        // A name is the smallest member and merges only ever lower it, so names settle in one pass over the merges.
        let mut name: Vec<usize> = (0..self.experts).collect();
        for merge in &self.merges[..self.experts - groups] {
            for of in &mut name {
                if *of == merge.absorbed {
                    *of = merge.kept;
                }
            }
        }
        Ok(Grouping::from_names(&name))
    }
}

/// Clusters the experts of a layer bottom-up.
///
/// Time grows with n^3 and memory with n^2; layers have at most a few hundred experts.
pub fn agglomerate(geometry: &Geometry, linkage: Linkage) -> Dendrogram {
    let n = geometry.experts();
    let mut clusters: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
    // Names of the live clusters, ascending, so that the first smallest distance found is the right one of a tie.
    let mut live: Vec<usize> = (0..n).collect();
    let mut table = vec![f64::INFINITY; n * n];
    for i in 0..n {
        for j in i + 1..n {
            table[i * n + j] = between(geometry, linkage, &clusters[i], &clusters[j]);
        }
    }
    let mut merges = Vec::with_capacity(n.saturating_sub(1));
    while live.len() > 1 {
        let mut best = Merge {
            kept: live[0],
            absorbed: live[1],
            height: table[live[0] * n + live[1]],
        };
        for (at, &a) in live.iter().enumerate() {
            for &b in &live[at + 1..] {
                if table[a * n + b] < best.height {
                    best = Merge {
                        kept: a,
                        absorbed: b,
                        height: table[a * n + b],
                    };
                }
            }
        }
        merges.push(best);
        let absorbed = std::mem::take(&mut clusters[best.absorbed]);
        clusters[best.kept].extend(absorbed);
        clusters[best.kept].sort_unstable();
        live.retain(|&name| name != best.absorbed);
        for &other in &live {
            if other != best.kept {
                let (low, high) = (other.min(best.kept), other.max(best.kept));
                table[low * n + high] = between(geometry, linkage, &clusters[low], &clusters[high]);
            }
        }
    }
    Dendrogram { experts: n, merges }
}

/// Linkage distance of two clusters, from the base distances.
///
/// Nothing is carried from step to step (as the Lance-Williams recurrence would): two pairs of clusters with the same
/// cross distances must compare equal, whatever the order in which the clusters grew.
fn between(geometry: &Geometry, linkage: Linkage, a: &[usize], b: &[usize]) -> f64 {
    let cross = || a.iter().flat_map(|&i| b.iter().map(move |&j| geometry.distance(i, j)));
    match linkage {
        Linkage::Single => cross().fold(f64::INFINITY, f64::min),
        Linkage::Complete => cross().fold(0.0, f64::max),
        Linkage::Average => {
            // Sorted, because a sum of the same distances in another order may differ in the last bit and break a tie.
            let mut distances: Vec<f64> = cross().collect();
            distances.sort_unstable_by(f64::total_cmp);
            distances.iter().sum::<f64>() / distances.len() as f64
        }
        Linkage::WardUnsquared => {
            let (size_a, size_b) = (a.len() as f64, b.len() as f64);
            let mixed: f64 = a
                .iter()
                .flat_map(|&i| b.iter().map(move |&j| geometry.squared(i, j)))
                .sum();
            let squared = mixed / (size_a * size_b)
                - geometry.scatter(a) / (size_a * size_a)
                - geometry.scatter(b) / (size_b * size_b);
            size_a * size_b / (size_a + size_b) * squared.max(0.0).sqrt()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(points: &[f64], linkage: Linkage, groups: usize) -> Vec<usize> {
        let geometry = Geometry::from_points(points, points.len()).unwrap();
        agglomerate(&geometry, linkage).cut(groups).unwrap().labels().to_vec()
    }

    #[test]
    fn the_nearest_pair_merges_first_under_every_linkage() {
        for linkage in [
            Linkage::Single,
            Linkage::Complete,
            Linkage::Average,
            Linkage::WardUnsquared,
        ] {
            assert_eq!(labels(&[0.0, 1.0, 10.0, 11.0], linkage, 2), [0, 0, 1, 1], "{linkage:?}");
            assert_eq!(labels(&[11.0, 0.0, 10.0, 1.0], linkage, 2), [0, 1, 0, 1], "{linkage:?}");
        }
    }

    #[test]
    fn ties_go_to_the_smallest_pair_of_names() {
        // 0-1, 1-2 and 2-3 are equally far: {0,1} first, then {2,3} ties with nothing nearer.
        assert_eq!(labels(&[0.0, 1.0, 2.0, 3.0], Linkage::Complete, 3), [0, 0, 1, 2]);
        assert_eq!(labels(&[0.0, 1.0, 2.0, 3.0], Linkage::Complete, 2), [0, 0, 1, 1]);
        // Single linkage ties {0,1} with 2 and 2 with 3: the pair (0, 2) precedes (2, 3).
        assert_eq!(labels(&[0.0, 1.0, 2.0, 3.0], Linkage::Single, 2), [0, 0, 0, 1]);
    }

    #[test]
    fn ward_uses_the_means() {
        let geometry = Geometry::from_points(&[0.0, 2.0, 10.0, 16.0], 4).unwrap();
        let heights = agglomerate(&geometry, Linkage::WardUnsquared).heights();
        // {0,2}: 1*1/2*2; {10,16}: 1/2*6; the pairs: 2*2/4*(13-1).
        for (got, want) in heights.iter().zip([1.0, 3.0, 12.0]) {
            assert!((got - want).abs() < 1e-12, "{heights:?}");
        }
    }

    #[test]
    fn impossible_cuts_are_refused() {
        let tree = agglomerate(&Geometry::from_points(&[0.0, 1.0], 2).unwrap(), Linkage::Average);
        assert_eq!(tree.cut(0), Err(CutError { groups: 0, experts: 2 }));
        assert_eq!(tree.cut(3), Err(CutError { groups: 3, experts: 2 }));
        assert!(tree.cut(3).unwrap_err().to_string().contains("between 1 and 2"));
    }
}

//! A partition of a layer's experts, and two ways to read or make one without a dendrogram.
//!
//! Owns the numbering of groups (by first appearance, so that equal partitions are equal values), the dominant member
//! of a group and one-shot grouping, the M-SMoE-style baseline. It must not know how a group is merged.

use crate::cluster::CutError;
use crate::geometry::Geometry;

/// Which group each expert belongs to. Groups count up in order of first appearance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    labels: Vec<usize>,
    groups: Vec<Vec<usize>>,
}

impl Grouping {
    /// Experts with equal names share a group; the names themselves are forgotten.
    pub fn from_names(names: &[usize]) -> Self {
        let mut seen: Vec<usize> = Vec::new();
        let mut labels = Vec::with_capacity(names.len());
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (expert, name) in names.iter().enumerate() {
            let label = seen.iter().position(|known| known == name).unwrap_or(seen.len());
            if label == seen.len() {
                seen.push(*name);
                groups.push(Vec::new());
            }
            labels.push(label);
            groups[label].push(expert);
        }
        Self { labels, groups }
    }

    /// `[n]`: the group of each expert. This is the expert map of a merged layer.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// `[r]` groups, each a list of experts in ascending order.
    pub fn groups(&self) -> &[Vec<usize>] {
        &self.groups
    }

    /// Number of groups r.
    pub fn count(&self) -> usize {
        self.groups.len()
    }
}

/// Differences of distances below this share of the group's radius are rounding, not a preference.
const NEAR_TIE: f64 = 1e-6;

/// The member nearest to the feature mean of its group.
///
/// Near-ties go to the lowest index; in a group of two both members are equally near by definition.
pub fn dominant(geometry: &Geometry, members: &[usize]) -> Option<usize> {
    let lowest = *members.iter().min()?;
    if members.len() <= 2 {
        return Some(lowest);
    }
    let distances: Vec<f64> = members
        .iter()
        .map(|&i| geometry.squared_to_mean(i, members).sqrt())
        .collect();
    let nearest = distances.iter().copied().fold(f64::INFINITY, f64::min);
    // The scale is the farthest member, so that exact copies of the mean, whose distances are noise, tie as well.
    let radius = distances.iter().copied().fold(0.0, f64::max);
    members
        .iter()
        .zip(&distances)
        .filter(|&(_, &d)| d - nearest <= NEAR_TIE * radius)
        .map(|(&i, _)| i)
        .min()
}

/// The `groups` most used experts, ascending; equally used ones: the lower id.
///
/// `usage [n]`: how often each expert was selected on the calibration data.
///
/// # Errors
/// [`CutError`] unless `1 <= groups <= n`.
pub fn cores(usage: &[u64], groups: usize) -> Result<Vec<usize>, CutError> {
    if groups == 0 || groups > usage.len() {
        return Err(CutError {
            groups,
            experts: usage.len(),
        });
    }
    let mut ranked: Vec<usize> = (0..usage.len()).collect();
    ranked.sort_by_key(|&expert| std::cmp::Reverse(usage[expert]));
    ranked.truncate(groups);
    ranked.sort_unstable();
    Ok(ranked)
}

/// One-shot grouping: the most used experts are cores, every other expert joins the core with the highest cosine
/// (equal cosines: the lower core).
///
/// # Errors
/// [`CutError`] unless `1 <= groups <= n`. `usage` must have an entry per expert of `geometry`.
pub fn one_shot(geometry: &Geometry, usage: &[u64], groups: usize) -> Result<Grouping, CutError> {
    assert_eq!(
        usage.len(),
        geometry.experts(),
        "invariant: usage and features describe the same layer"
    );
    let cores = cores(usage, groups)?;
    let join = |expert: usize| {
        if cores.contains(&expert) {
            return expert;
        }
        let mut best = (cores[0], geometry.cosine(expert, cores[0]));
        for &core in &cores[1..] {
            let cosine = geometry.cosine(expert, core);
            if cosine > best.1 {
                best = (core, cosine);
            }
        }
        best.0
    };
    let names: Vec<usize> = (0..usage.len()).map(join).collect();
    Ok(Grouping::from_names(&names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_numbered_by_first_appearance() {
        let grouping = Grouping::from_names(&[7, 3, 7, 0, 3]);
        assert_eq!(grouping.labels(), [0, 1, 0, 2, 1]);
        assert_eq!(grouping.groups(), [vec![0, 2], vec![1, 4], vec![3]]);
        assert_eq!(grouping.count(), 3);
    }

    #[test]
    fn the_dominant_member_is_nearest_to_the_mean_and_near_ties_go_down() {
        let geometry = Geometry::from_points(&[0.0, 1.0, 1.2, 9.0, 4.0, 4.0], 6).unwrap();
        assert_eq!(dominant(&geometry, &[0, 1, 2, 3]), Some(2));
        assert_eq!(dominant(&geometry, &[2, 1]), Some(1));
        assert_eq!(dominant(&geometry, &[5]), Some(5));
        assert_eq!(dominant(&geometry, &[]), None);
        // Mean of 0, 4, 4 is nearest to both copies.
        assert_eq!(dominant(&geometry, &[0, 5, 4]), Some(4));
    }

    #[test]
    fn one_shot_cores_prefer_lower_ids() {
        assert_eq!(cores(&[5, 9, 5, 5], 3), Ok(vec![0, 1, 2]));
        assert_eq!(cores(&[5, 9], 0), Err(CutError { groups: 0, experts: 2 }));
        let geometry = Geometry::from_points(&[1.0, 0.0, 0.0, 1.0, 0.9, 0.1, -1.0, 2.0], 4).unwrap();
        let grouping = one_shot(&geometry, &[4, 4, 1, 1], 2).unwrap();
        assert_eq!(grouping.labels(), [0, 1, 0, 1]);
    }
}

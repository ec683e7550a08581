//! Top-k selection with the tie rule every method shares.

/// Indices of the `k` largest values of `row`, largest first; equal values go to the lower index. NaN counts as the
/// smallest value. `k` may exceed the length: then all indices are returned.
pub fn top_k(row: &[f32], k: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(k.min(row.len()) + 1);
    for (i, &value) in row.iter().enumerate() {
        // Strictly greater moves ahead, so that an equal later value stays behind.
        let greater = |j: usize| value > row[j] || (row[j].is_nan() && !value.is_nan());
        if best.len() == k && !best.last().is_some_and(|&j| greater(j)) {
            continue;
        }
        let at = best.iter().position(|&j| greater(j)).unwrap_or(best.len());
        best.insert(at, i);
        best.truncate(k);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::top_k;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_lower_index_and_nan_comes_last() {
        assert_eq!(top_k(&[1.0, 3.0, 3.0, 2.0], 2), [1, 2]);
        assert_eq!(top_k(&[f32::NAN, -1.0, f32::NAN], 2), [1, 0]);
        assert_eq!(top_k(&[1.0], 4), [0]);
        assert!(top_k(&[1.0], 0).is_empty());
    }

    proptest! {
        #[test]
        fn equals_a_stable_sort(row in prop::collection::vec((-3i8..3).prop_map(f32::from), 0..20), k in 0usize..8) {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            order.truncate(k);
            prop_assert_eq!(top_k(&row, k), order);
        }
    }
}

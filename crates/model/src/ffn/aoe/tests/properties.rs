//! What must hold for any weights: invariances, limits, independence of tokens, and how far bf16 products go.

use super::*;

/// Rotates two of the factors of expert `e`: rows of `w_down`, columns of `w_up`.
fn rotate(w: &mut [Tensor], c: &AoeConfig, e: usize, (i, j): (usize, usize), angle: f64) {
    let (sin, cos) = angle.sin_cos();
    let mut down = w[0].values::<f64>().unwrap().to_vec();
    let at = |row: usize, col: usize| (e * c.d_low + row) * D + col;
    for col in 0..D {
        let (a, b) = (down[at(i, col)], down[at(j, col)]);
        (down[at(i, col)], down[at(j, col)]) = (cos * a - sin * b, sin * a + cos * b);
    }
    w[0] = Tensor::new(down, &[c.experts * c.d_low, D]).unwrap();
    let mut up = w[1 + 3 * e].values::<f64>().unwrap().to_vec();
    for row in up.chunks_exact_mut(c.d_low) {
        (row[i], row[j]) = (cos * row[i] - sin * row[j], sin * row[i] + cos * row[j]);
    }
    w[1 + 3 * e] = Tensor::new(up, &[c.d_wide, c.d_low]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Norms and outputs do not depend on the basis of an expert's factors.
    #[test]
    fn rotating_the_factors_changes_nothing(seed in 0usize..500, angle in 0.0f64..6.3, e in 0usize..4) {
        let c = config(4, 2, Score::Selected, 0.0);
        let x = values(&[N, D], seed + 1);
        let mut w = weights(&c, seed);
        let before = run(&layer(&c, &w), &x);
        rotate(&mut w, &c, e, (0, 2), angle);
        rotate(&mut w, &c, e, (1, 2), angle * 0.7);
        let after = run(&layer(&c, &w), &x);
        prop_assert_eq!(before.chosen, after.chosen);
        prop_assert!(distance(&before.y, &after.y) < 1e-10);
    }

    /// (a·w_down, w_up/a): where the expert is the only one, a changes nothing; among several, it moves the expert's
    /// score, up to being chosen always or never.
    #[test]
    fn the_scale_of_the_factors_is_free_but_for_the_ranking(seed in 0usize..500, e in 0usize..3) {
        let scaled = |c: &AoeConfig, e: usize, a: f64| {
            let mut w = weights(c, seed);
            let mut down = w[0].values::<f64>().unwrap().to_vec();
            for v in &mut down[e * c.d_low * D..(e + 1) * c.d_low * D] {
                *v *= a;
            }
            w[0] = Tensor::new(down, &[c.experts * c.d_low, D]).unwrap();
            w[1 + 3 * e] = ops::scale(&w[1 + 3 * e], 1.0 / a).unwrap();
            layer(c, &w)
        };
        let x = values(&[N, D], seed + 2);
        let alone = config(1, 1, Score::Selected, 0.0);
        prop_assert!(distance(&run(&scaled(&alone, 0, 1.0), &x).y, &run(&scaled(&alone, 0, 8.0), &x).y) < 1e-10);
        let c = config(3, 1, Score::Selected, 0.0);
        prop_assert!(run(&scaled(&c, e, 1e6), &x).chosen.iter().all(|&i| i == e));
        prop_assert!(run(&scaled(&c, e, 1e-6), &x).chosen.iter().all(|&i| i != e));
    }

    /// Experts in another order choose the same tokens under other names.
    #[test]
    fn permuting_experts_permutes_their_ids(seed in 0usize..500, by in 1usize..4) {
        let c = config(4, 2, Score::Selected, 0.0);
        let x = values(&[N, D], seed + 3);
        let w = weights(&c, seed);
        let moved = |e: usize| (e + by) % c.experts;
        let mut down = vec![0.0; c.experts * c.d_low * D];
        let mut permuted = w.clone();
        let size = c.d_low * D;
        for e in 0..c.experts {
            let rows = &w[0].values::<f64>().unwrap()[e * size..(e + 1) * size];
            down[moved(e) * size..(moved(e) + 1) * size].copy_from_slice(rows);
            permuted[1 + 3 * moved(e)..4 + 3 * moved(e)].clone_from_slice(&w[1 + 3 * e..4 + 3 * e]);
        }
        permuted[0] = Tensor::new(down, &[c.experts * c.d_low, D]).unwrap();
        let (before, after) = (run(&layer(&c, &w), &x), run(&layer(&c, &permuted), &x));
        let names: Vec<usize> = before.chosen.iter().map(|&e| moved(e)).collect();
        prop_assert_eq!(names, after.chosen);
        prop_assert!(distance(&before.y, &after.y) < 1e-10);
    }

    /// Weights of the selected softmax sum to one; those of the whole softmax to less, unless all are selected.
    #[test]
    fn weights_sum_to_one_or_less(seed in 0usize..500, k in 1usize..5) {
        let x = values(&[N, D], seed);
        for score in [Score::Selected, Score::All] {
            let c = config(4, k, score, 0.0);
            for row in run(&layer(&c, &weights(&c, seed)), &x).g.chunks_exact(k) {
                let sum: f32 = row.iter().sum();
                if score == Score::Selected || k == 4 {
                    prop_assert!((sum - 1.0).abs() < 1e-5);
                } else {
                    prop_assert!(sum < 1.0);
                }
            }
        }
    }

    /// With every expert chosen the layer is a dense mixture: each expert alone, weighed by the softmax over all norms.
    #[test]
    fn with_all_experts_chosen_it_is_a_dense_mixture(seed in 0usize..500, e in 2usize..5) {
        let x = values(&[N, D], seed + 4);
        let alone = config(1, 1, Score::Selected, 0.0);
        let c = config(e, e, Score::Selected, 0.0);
        let w = weights(&c, seed);
        let made = run(&layer(&c, &w), &x);
        let g = ops::softmax(&made.norms).unwrap();
        let mut sum = Tensor::new(vec![0.0f64; N * D], &[N, D]).unwrap();
        for i in 0..e {
            let down = ops::narrow_rows(&w[0], i * c.d_low, (i + 1) * c.d_low).unwrap();
            let one = [vec![down], w[1 + 3 * i..4 + 3 * i].to_vec()].concat();
            let y = run(&layer(&alone, &one), &x).y;
            let column = ops::take_last(&g, &[i; N], 1).unwrap();
            sum = ops::add(&sum, &ops::scale_rows(&y, &column).unwrap()).unwrap();
        }
        prop_assert!(distance(&made.y, &sum) < 1e-10);
    }

    /// Experts that are copies of each other tie; whichever wins, the output is that of one of them alone.
    #[test]
    fn among_copies_it_does_not_matter_who_wins(seed in 0usize..500, k in 1usize..5) {
        let x = values(&[N, D], seed + 5);
        let alone = config(1, 1, Score::Selected, 0.0);
        let one = weights(&alone, seed);
        let c = config(4, k, Score::Selected, 0.0);
        let down = ops::concat_rows(&[&one[0]; 4]).unwrap();
        let copies: Vec<Tensor> = std::iter::once(down).chain((0..4).flat_map(|_| one[1..].to_vec())).collect();
        let (single, many) = (run(&layer(&alone, &one), &x), run(&layer(&c, &copies), &x));
        prop_assert!(many.chosen.iter().enumerate().all(|(i, &e)| e == i % k), "ties go to the lower index");
        prop_assert!(distance(&single.y, &many.y) < 1e-10);
    }

    /// K different experts for every token, those with the largest norms; so the rates of selection sum to K.
    #[test]
    fn every_token_has_k_different_winners(seed in 0usize..500, k in 1usize..5) {
        let c = config(5, k, Score::Selected, 0.0);
        let made = run(&layer(&c, &weights(&c, seed)), &values(&[N, D], seed));
        let norms = made.norms.to_f32();
        prop_assert_eq!(made.chosen.len(), N * k);
        for (row, chosen) in norms.chunks_exact(5).zip(made.chosen.chunks_exact(k)) {
            let losers: Vec<usize> = (0..5).filter(|e| !chosen.contains(e)).collect();
            prop_assert_eq!(losers.len(), 5 - k);
            let least = chosen.iter().map(|&e| row[e]).fold(f32::INFINITY, f32::min);
            prop_assert!(losers.iter().all(|&e| row[e] <= least));
        }
    }

    /// Where every expert wins equally often and norms are the same but for their order, the balance loss is
    /// coefficient times K, its value under perfect balance.
    #[test]
    fn an_even_load_costs_the_coefficient_times_k(k in 1usize..5, norms in proptest::collection::vec(0.1f64..3.0, D)) {
        let c = config(D, k, Score::Selected, 0.01);
        let mut w = weights(&c, 1);
        // On the axis t expert e has the norm `norms[(e + t) % D]`.
        let mut down = vec![0.0; D * c.d_low * D];
        for (e, t) in (0..D).flat_map(|e| (0..D).map(move |t| (e, t))) {
            down[e * c.d_low * D + t] = norms[(e + t) % D];
        }
        w[0] = Tensor::new(down, &[D * c.d_low, D]).unwrap();
        let axes = (0..D * D).map(|i| f64::from(u8::from(i % (D + 1) == 0))).collect();
        let x = Tensor::new(axes, &[D, D]).unwrap().requires_grad();
        let loss = run(&layer(&c, &w), &x).balance.unwrap().item().unwrap();
        prop_assert!((loss - 0.01 * k as f64).abs() < 1e-9, "{}", loss);
    }

    /// A token's winners and output do not depend on the tokens beside it.
    #[test]
    fn tokens_do_not_see_each_other(seed in 0usize..500, t in 0usize..N) {
        let c = config(4, 2, Score::Selected, 0.0);
        let layer = layer(&c, &weights(&c, seed));
        let x = values(&[N, D], seed + 6);
        let (all, one) = (run(&layer, &x), run(&layer, &ops::narrow_rows(&x, t, t + 1).unwrap()));
        prop_assert_eq!(&all.chosen[2 * t..2 * t + 2], &one.chosen[..]);
        prop_assert!(distance(&ops::narrow_rows(&all.y, t, t + 1).unwrap(), &one.y) < 1e-12);
    }

    /// With products in bf16 the norms stay within 1 % of those in f32, so that only winners and losers that close change
    /// places; where none does, the output stays within 2 % of its largest value.
    #[test]
    fn bf16_products_change_little_and_only_near_ties(seed in 0usize..500) {
        let c = config(4, 2, Score::Selected, 0.0);
        let narrow: Vec<Tensor> = weights(&c, seed).iter().map(|t| t.cast(DType::F32).unwrap()).collect();
        let layer = layer(&c, &narrow);
        let x = values(&[N, D], seed + 7).cast(DType::F32).unwrap();
        let (exact, rough) = (run(&layer, &x), run_in(Compute::Bf16, &layer, &x));
        let (p, q) = (exact.norms.to_f32(), rough.norms.to_f32());
        let largest = p.iter().copied().fold(0.0, f32::max);
        prop_assert!(p.iter().zip(&q).all(|(p, q)| (p - q).abs() <= 0.01 * largest));
        let (y, z) = (exact.y.to_f32(), rough.y.to_f32());
        let scale = y.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for t in 0..N {
            let (a, b) = (&exact.chosen[2 * t..2 * t + 2], &rough.chosen[2 * t..2 * t + 2]);
            if a.iter().all(|e| b.contains(e)) {
                let rows = y[t * D..(t + 1) * D].iter().zip(&z[t * D..(t + 1) * D]);
                prop_assert!(rows.clone().all(|(y, z)| (y - z).abs() <= 0.02 * scale), "{:?}", rows.collect::<Vec<_>>());
            } else {
                let least = a.iter().map(|&e| p[4 * t + e]).fold(f32::INFINITY, f32::min);
                let new = b.iter().filter(|e| !a.contains(e)).map(|&e| p[4 * t + e]).fold(0.0, f32::max);
                prop_assert!(least - new <= 0.02 * largest, "{} {}", least, new);
            }
        }
    }
}

//! Every gradient kernel against central finite differences of its forward kernel, in f64.

use ounce_kernels::*;

/// Reproducible values in -1..1.
fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// Checks `grad` against the differences of loss(x) = Σ weights · f(x), where `f` fills an output as long as `weights`.
fn check(name: &str, x: &[f64], weights: &[f64], grad: &[f64], mut f: impl FnMut(&[f64], &mut [f64])) {
    let mut y = vec![0.0; weights.len()];
    let mut loss = |x: &[f64]| {
        f(x, &mut y);
        y.iter().zip(weights).map(|(y, w)| y * w).sum::<f64>()
    };
    let mut moved = x.to_vec();
    assert_eq!(grad.len(), x.len(), "{name}");
    for i in 0..x.len() {
        let h = 1e-5;
        moved[i] = x[i] + h;
        let up = loss(&moved);
        moved[i] = x[i] - h;
        let down = loss(&moved);
        moved[i] = x[i];
        let want = (up - down) / (2.0 * h);
        assert!(
            (grad[i] - want).abs() < 1e-8 * (1.0 + want.abs()),
            "{name}[{i}]: {} is not {want}",
            grad[i]
        );
    }
}

#[test]
fn activations() {
    let (x, dy) = (noise(9, 1).iter().map(|x| 4.0 * x).collect::<Vec<_>>(), noise(9, 2));
    let mut dx = vec![0.0; 9];
    silu_backward(&x, &dy, &mut dx);
    check("silu", &x, &dy, &dx, silu);
    gelu_erf_backward(&x, &dy, &mut dx);
    check("gelu", &x, &dy, &dx, gelu_erf);
    let mut y = vec![0.0; 9];
    sigmoid(&x, &mut y);
    sigmoid_backward(&y, &dy, &mut dx);
    check("sigmoid", &x, &dy, &dx, sigmoid);
    let u = noise(9, 3);
    let mut du = vec![0.0; 9];
    swiglu_backward(&x, &u, &dy, Some(&mut dx), Some(&mut du));
    check("swiglu gate", &x, &dy, &dx, |x, y| swiglu(x, &u, y));
    check("swiglu up", &u, &dy, &du, |u, y| swiglu(&x, u, y));
}

#[test]
fn rows_of_probabilities() {
    let (x, dy) = (noise(10, 4), noise(10, 5));
    let (mut y, mut dx) = (vec![0.0; 10], vec![0.0; 10]);
    softmax(&x, 5, &mut y);
    softmax_backward(&y, &dy, 5, &mut dx);
    check("softmax", &x, &dy, &dx, |x, y| softmax(x, 5, y));
    log_softmax(&x, 5, &mut y);
    log_softmax_backward(&y, &dy, 5, &mut dx);
    check("log_softmax", &x, &dy, &dx, |x, y| log_softmax(x, 5, y));
}

#[test]
fn cross_entropy() {
    let (x, targets) = (noise(12, 6), [2, -1, 0]);
    let (mut grad, mut loss) = (x.clone(), [0.0; 3]);
    cross_entropy_rows(&mut grad, 4, &targets, &mut loss, Some(0.7));
    check("cross entropy", &x, &[0.7; 3], &grad, |x, y| {
        cross_entropy_rows(&mut x.to_vec(), 4, &targets, y, None);
    });
    assert_eq!(loss[1], 0.0);
    assert_eq!(grad[4..8], [0.0; 4]);
}

#[test]
fn normalisation_and_rotation() {
    let (x, w, dy) = (noise(12, 7), noise(4, 8), noise(12, 9));
    let (mut y, mut rstd) = (vec![0.0; 12], vec![0.0; 3]);
    rms_norm(&x, &w, 1e-5, &mut y, Some(&mut rstd));
    let (mut dx, mut dw) = (vec![0.0; 12], vec![0.0; 4]);
    rms_norm_backward(&x, &w, &rstd, &dy, Some(&mut dx), Some(&mut dw));
    check("rms_norm x", &x, &dy, &dx, |x, y| rms_norm(x, &w, 1e-5, y, None));
    check("rms_norm w", &w, &dy, &dw, |w, y| rms_norm(&x, w, 1e-5, y, None));

    let (cos, sin): (Vec<f64>, Vec<f64>) = noise(6, 10).iter().map(|a| (a.cos(), a.sin())).unzip();
    let mut dx = dy.clone();
    rope(&mut dx, 1, 4, &cos, &sin, true);
    check("rope", &x, &dy, &dx, |x, y| {
        y.copy_from_slice(x);
        rope(y, 1, 4, &cos, &sin, false);
    });
}

#[test]
fn grouped_causal_attention_with_a_window_and_padding() {
    let (hd, q_len, kv) = (3, 3, 5);
    let s = AttentionShape {
        batch: 2,
        q_len,
        q_heads: 4,
        kv_heads: 2,
        head_dim: hd,
        window: Some(3),
        causal: true,
        scale: 0.6,
        slopes: None,
    };
    // Row 0: the last three of five positions. Row 1: two keys of padding, and the first query sees nothing.
    let rows = AttentionRows {
        q_start: &[2, 1],
        kv_begin: &[0, 2],
        kv_len: &[5, 4],
        positions: None,
    };
    fn heads(data: &[f64]) -> Heads<'_> {
        Heads {
            data: Data::F64(data),
            batch_stride: 5 * 2 * 3,
            token_stride: 2 * 3,
            head_stride: 3,
        }
    }
    let n = 2 * q_len * 4 * hd;
    let (q, k, v, dout) = (
        noise(n, 11),
        noise(2 * kv * 2 * hd, 12),
        noise(2 * kv * 2 * hd, 13),
        noise(n, 14),
    );
    let forward = |q: &[f64], k: &[f64], v: &[f64], out: &mut [f64], lse: Option<&mut [f64]>| {
        attention(&s, &rows, q, heads(k), heads(v), out, lse, Compute::F32);
    };
    let (mut out, mut lse) = (vec![0.0; n], vec![0.0; 2 * 4 * q_len]);
    forward(&q, &k, &v, &mut out, Some(&mut lse));
    let (mut dq, mut dk, mut dv) = (vec![1.0; n], vec![1.0; k.len()], vec![1.0; k.len()]);
    attention_backward(
        &s,
        &rows,
        &q,
        heads(&k),
        heads(&v),
        &out,
        &lse,
        &dout,
        &mut dq,
        &mut dk,
        &mut dv,
        Compute::F32,
    );
    check("attention q", &q, &dout, &dq, |q, y| forward(q, &k, &v, y, None));
    check("attention k", &k, &dout, &dk, |k, y| forward(&q, k, &v, y, None));
    check("attention v", &v, &dout, &dv, |v, y| forward(&q, &k, v, y, None));
    assert_eq!(lse[4 * q_len], f64::NEG_INFINITY);
    assert_eq!(out[q_len * 4 * hd..][..4 * hd], vec![0.0; 4 * hd]);
}

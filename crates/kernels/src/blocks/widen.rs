//! Blocks to f32, kind by kind. A block's products of scale and number fit into an f32 but for Q6_K's, which are rounded
//! once, as are sums with a minimum; so the order of operations below is what makes the bits.

use half::f16;

use super::BlockKind;
use crate::simd::{Vf32, kernel};

kernel! {
    /// Widens whole blocks on this thread.
    ///
    /// # Panics
    /// If `bytes` are not the blocks of `out.len()` values.
    pub fn widen_blocks(kind: BlockKind, bytes: &[u8], out: &mut [f32]) = widen_blocks_body;
}

#[inline(always)]
fn widen_blocks_body<V: Vf32>(kind: BlockKind, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(kind.byte_len(out.len()), Some(bytes.len()), "{} values", out.len());
    match kind {
        BlockKind::Q4_0 => each(bytes, out, q4_0),
        BlockKind::Q4_1 => each(bytes, out, q4_1),
        BlockKind::Q5_0 => each(bytes, out, q5_0),
        BlockKind::Q5_1 => each(bytes, out, q5_1),
        BlockKind::Q8_0 => each(bytes, out, q8_0),
        BlockKind::Q4K => each(bytes, out, q4_k),
        BlockKind::Q5K => each(bytes, out, q5_k),
        BlockKind::Q6K => each(bytes, out, q6_k),
    }
}

#[inline(always)]
fn each<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    widen: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (blocks, values) = (bytes.as_chunks::<BYTES>().0, out.as_chunks_mut::<VALUES>().0);
    for (block, out) in blocks.iter().zip(values) {
        widen(block, out);
    }
}

/// The half-precision number at byte `at`.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `N` bytes from byte `at` on.
#[inline(always)]
fn part<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("invariant: within the block")
}

#[inline(always)]
fn q4_0(block: &[u8; 18], y: &mut [f32; 32]) {
    let (d, q) = (half_at(block, 0), part::<16>(block, 2));
    for j in 0..16 {
        y[j] = (i32::from(q[j] & 15) - 8) as f32 * d;
        y[j + 16] = (i32::from(q[j] >> 4) - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m, q) = (half_at(block, 0), half_at(block, 2), part::<16>(block, 4));
    for j in 0..16 {
        y[j] = f32::from(q[j] & 15) * d + m;
        y[j + 16] = f32::from(q[j] >> 4) * d + m;
    }
}

/// The fifth bit of each of 32 values, in place.
#[inline(always)]
fn fifth_bits(bytes: [u8; 4]) -> [u8; 32] {
    let bits = u32::from_le_bytes(bytes);
    let mut fifth = [0; 32];
    for (j, fifth) in fifth.iter_mut().enumerate() {
        *fifth = ((bits >> j) as u8 & 1) << 4;
    }
    fifth
}

#[inline(always)]
fn q5_0(block: &[u8; 22], y: &mut [f32; 32]) {
    let (d, high, q) = (half_at(block, 0), fifth_bits(*part(block, 2)), part::<16>(block, 6));
    for j in 0..16 {
        y[j] = (i32::from(q[j] & 15 | high[j]) - 16) as f32 * d;
        y[j + 16] = (i32::from(q[j] >> 4 | high[j + 16]) - 16) as f32 * d;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (high, q) = (fifth_bits(*part(block, 4)), part::<16>(block, 8));
    for j in 0..16 {
        y[j] = f32::from(q[j] & 15 | high[j]) * d + m;
        y[j + 16] = f32::from(q[j] >> 4 | high[j + 16]) * d + m;
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34], y: &mut [f32; 32]) {
    let (d, q) = (half_at(block, 0), part::<32>(block, 2));
    for j in 0..32 {
        y[j] = f32::from(q[j] as i8) * d;
    }
}

/// Scale and minimum of group `j` of eight: twice eight numbers of six bits in twelve bytes.
#[inline(always)]
fn scale_and_minimum(s: &[u8; 12], j: usize) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

#[inline(always)]
fn q4_k(block: &[u8; 144], y: &mut [f32; 256]) {
    let (d, least) = (half_at(block, 0), half_at(block, 2));
    let (scales, q) = (part::<12>(block, 4), part::<128>(block, 16));
    for pair in 0..4 {
        let q = part::<32>(q, 32 * pair);
        let (y, _) = y[64 * pair..].split_at_mut(64);
        let [low, high] = [0, 1].map(|half| {
            let (scale, minimum) = scale_and_minimum(scales, 2 * pair + half);
            (d * scale, least * minimum)
        });
        for l in 0..32 {
            y[l] = low.0 * f32::from(q[l] & 15) - low.1;
            y[l + 32] = high.0 * f32::from(q[l] >> 4) - high.1;
        }
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], y: &mut [f32; 256]) {
    let (d, least) = (half_at(block, 0), half_at(block, 2));
    let (scales, fifth, q) = (part::<12>(block, 4), part::<32>(block, 16), part::<128>(block, 48));
    for pair in 0..4 {
        let q = part::<32>(q, 32 * pair);
        let (y, _) = y[64 * pair..].split_at_mut(64);
        let [low, high] = [0, 1].map(|half| {
            let (scale, minimum) = scale_and_minimum(scales, 2 * pair + half);
            (d * scale, least * minimum)
        });
        for l in 0..32 {
            let fifth = fifth[l] >> (2 * pair);
            y[l] = low.0 * f32::from(q[l] & 15 | (fifth & 1) << 4) - low.1;
            y[l + 32] = high.0 * f32::from(q[l] >> 4 | (fifth & 2) << 3) - high.1;
        }
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], y: &mut [f32; 256]) {
    let (low, high) = (part::<128>(block, 0), part::<64>(block, 128));
    let (scales, d) = (part::<16>(block, 192), half_at(block, 208));
    for half in 0..2 {
        let (low, high) = (part::<64>(low, 64 * half), part::<32>(high, 32 * half));
        let scales = part::<8>(scales, 8 * half);
        let (y, _) = y[128 * half..].split_at_mut(128);
        // Sixteen values share a scale.
        for group in 0..2 {
            let scale = |quarter: usize| d * f32::from(scales[group + 2 * quarter] as i8);
            let scale = [scale(0), scale(1), scale(2), scale(3)];
            for l in 16 * group..16 * group + 16 {
                let (a, b, h) = (low[l], low[l + 32], high[l]);
                let number = |four: u8, two: u8| (i32::from(four | (two & 3) << 4) - 32) as f32;
                y[l] = scale[0] * number(a & 15, h);
                y[l + 32] = scale[1] * number(b & 15, h >> 2);
                y[l + 64] = scale[2] * number(a >> 4, h >> 4);
                y[l + 96] = scale[3] * number(b >> 4, h >> 6);
            }
        }
    }
}

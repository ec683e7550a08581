//! Counter-based randomness: a draw is a pure function of (seed, stream, step, index), so there is no generator state to
//! save, and no order of calls to respect.
//!
//! Philox4x32-10, from "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon et al., SC 2011).

/// Philox4x32 with ten rounds.
#[derive(Debug, Clone, Copy)]
pub struct Philox;

impl Philox {
    /// The block cipher itself: 128 bits of counter, 64 bits of key.
    pub fn block(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
        for round in 0..10 {
            if round > 0 {
                key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
            }
            let a = u64::from(counter[0]) * 0xD251_1F53;
            let b = u64::from(counter[2]) * 0xCD9E_8D57;
            counter = [
                (b >> 32) as u32 ^ counter[1] ^ key[0],
                b as u32,
                (a >> 32) as u32 ^ counter[3] ^ key[1],
                a as u32,
            ];
        }
        counter
    }

    /// 64 random bits. `seed` is the key; all of `stream`, `step` and `index` count.
    pub fn at(seed: u64, stream: u64, step: u64, index: u64) -> u64 {
        // The stream gets a key of its own through one block, so that (stream, step, index) cannot collide.
        let k = Self::block(
            [stream as u32, (stream >> 32) as u32, 0x4f75_6e63, 0x65],
            [seed as u32, (seed >> 32) as u32],
        );
        let out = Self::block(
            [index as u32, (index >> 32) as u32, step as u32, (step >> 32) as u32],
            [k[0], k[1]],
        );
        u64::from(out[0]) | u64::from(out[1]) << 32
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(seed: u64, stream: u64, step: u64, index: u64) -> f64 {
        (Self::at(seed, stream, step, index) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box-Muller).
    pub fn normal(seed: u64, stream: u64, step: u64, index: u64) -> f64 {
        let bits = Self::at(seed, stream, step, index);
        // (0, 1]: the logarithm stays finite.
        let u = ((bits >> 32) as f64 + 1.0) / 4_294_967_296.0;
        let v = f64::from(bits as u32) / 4_294_967_296.0;
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::Philox;

    #[test]
    fn known_answers_of_the_published_generator() {
        // From the authors' Random123 distribution (kat_vectors, philox4x32 10).
        assert_eq!(
            Philox::block([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            Philox::block([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            Philox::block(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let n = 20_000;
        let draws: Vec<f64> = (0..n).map(|i| Philox::normal(3, 5, 7, i)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}

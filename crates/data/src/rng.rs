//! Counter-based randomness.
//!
//! Owns Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). A draw is a pure function
//! of (seed, stream, step, index), so nothing has to be saved to resume, and threads may draw in any order. It must
//! not know what is drawn for: callers choose a stream number per purpose.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The block function: ten rounds over a 128-bit counter under a 64-bit key.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

fn words(n: u64) -> [u32; 2] {
    [n as u32, (n >> 32) as u32]
}

/// One stream of one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The stream `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        // Four numbers do not fit one 128-bit counter, so the stream goes through a block of its own into the key.
        let [s0, s1] = words(stream);
        let block = philox4x32_10([s0, s1, 0, 0], words(seed));
        Self {
            key: [block[0], block[1]],
        }
    }

    /// The draw at (`step`, `index`) of this stream.
    pub fn draw(self, step: u64, index: u64) -> Draw {
        let ([i0, i1], [s0, s1]) = (words(index), words(step));
        Draw(philox4x32_10([i0, i1, s0, s1], self.key))
    }

    /// The draw at (`seed`, `stream`, `step`, `index`).
    pub fn at(seed: u64, stream: u64, step: u64, index: u64) -> Draw {
        Self::new(seed, stream).draw(step, index)
    }
}

/// 128 random bits, read as what is needed. Two readings of one draw are not independent: draw again instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw([u32; 4]);

impl Draw {
    /// 64 uniform bits.
    pub fn u64(self) -> u64 {
        u64::from(self.0[0]) | u64::from(self.0[1]) << 32
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    pub fn uniform(self) -> f32 {
        (self.0[0] >> 8) as f32 / 16_777_216.0
    }

    /// Standard normal (Box and Muller, computed in f64 and rounded once).
    pub fn normal(self) -> f32 {
        // 1 - u is in (0, 1], so that the logarithm is finite.
        let u = (self.u64() >> 11) as f64 / (1u64 << 53) as f64;
        let angle = (f64::from(self.0[2]) + 0.5) / 4_294_967_296.0;
        ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
    }

    /// Uniform in 0..`n` (0 when `n` is 0); the bias is below n / 2^64.
    pub fn below(self, n: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_known_answers() {
        // Random123 1.14, tests/kat_vectors, lines "philox4x32 10".
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, answer) in cases {
            assert_eq!(philox4x32_10(counter, key), answer);
        }
    }

    #[test]
    fn every_coordinate_changes_the_draw() {
        let base = Philox::at(1, 2, 3, 4);
        let others = [
            Philox::at(0, 2, 3, 4),
            Philox::at(1, 0, 3, 4),
            Philox::at(1, 2, 0, 4),
            Philox::at(1, 2, 3, 0),
            Philox::at(1 << 40, 2, 3, 4),
            Philox::at(1, 2 << 40, 3, 4),
            Philox::at(1, 2, 3 << 40, 4),
            Philox::at(1, 2, 3, 4 << 40),
            Philox::at(2, 1, 3, 4),
            Philox::at(1, 2, 4, 3),
        ];
        assert!(others.iter().all(|&other| other != base));
        assert_eq!(Philox::at(1, 2, 3, 4), base);
    }

    #[test]
    fn moments_are_right() {
        let n = 200_000u64;
        let stream = Philox::new(5, 6);
        let (mut uniform, mut normal, mut square, mut tens) = (0.0, 0.0, 0.0, [0u32; 10]);
        for index in 0..n {
            let draw = stream.draw(0, index);
            let (u, z) = (f64::from(draw.uniform()), f64::from(draw.normal()));
            assert!((0.0..1.0).contains(&u) && z.is_finite());
            uniform += u;
            normal += z;
            square += z * z;
            tens[draw.below(10) as usize] += 1;
        }
        let n = n as f64;
        // Five standard errors each: sqrt(1/12/n), sqrt(1/n), sqrt(2/n).
        assert!((uniform / n - 0.5).abs() < 5.0 * (1.0 / 12.0 / n).sqrt());
        assert!((normal / n).abs() < 5.0 * (1.0 / n).sqrt());
        assert!((square / n - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!(
            tens.iter()
                .all(|&count| (f64::from(count) - n / 10.0).abs() < 5.0 * (0.09 * n).sqrt()),
            "{tens:?}"
        );
        assert_eq!(stream.draw(0, 0).below(0), 0);
    }
}

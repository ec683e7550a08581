//! Counter-based randomness.
//!
//! Owns streams and draws over the cipher of `kernels` (Philox4x32-10). A draw is a pure function of (seed, stream, step,
//! index), so nothing has to be saved to resume, and threads may draw in any order. It must not know what is drawn for:
//! callers choose a stream number per purpose.
//!
//! Streams get their keys in another way than those of `kernels` (no tag in the counter), so the two never share a stream
//! of one seed; and the order of training windows follows from these keys, so that changing them would change what every
//! recipe trains.

use ounce_kernels::Philox;

fn words(n: u64) -> [u32; 2] {
    [n as u32, (n >> 32) as u32]
}

/// One stream of one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomStream {
    key: [u32; 2],
}

impl RandomStream {
    /// The stream `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        // Four numbers do not fit one 128-bit counter, so the stream goes through a block of its own into the key.
        let [s0, s1] = words(stream);
        let block = Philox::block([s0, s1, 0, 0], words(seed));
        Self {
            key: [block[0], block[1]],
        }
    }

    /// The draw at (`step`, `index`) of this stream.
    pub fn draw(self, step: u64, index: u64) -> Draw {
        let ([i0, i1], [s0, s1]) = (words(index), words(step));
        Draw(Philox::block([i0, i1, s0, s1], self.key))
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
    fn draws_are_pinned() {
        // The order of training of shipped models follows from these; they may not change with the cipher's home.
        assert_eq!(
            RandomStream::at(1, 2, 3, 4),
            Draw([0x0ef5_e75e, 0xdfd0_9736, 0x8545_afa7, 0xb93f_626a])
        );
    }

    #[test]
    fn every_coordinate_changes_the_draw() {
        let base = RandomStream::at(1, 2, 3, 4);
        let others = [
            RandomStream::at(0, 2, 3, 4),
            RandomStream::at(1, 0, 3, 4),
            RandomStream::at(1, 2, 0, 4),
            RandomStream::at(1, 2, 3, 0),
            RandomStream::at(1 << 40, 2, 3, 4),
            RandomStream::at(1, 2 << 40, 3, 4),
            RandomStream::at(1, 2, 3 << 40, 4),
            RandomStream::at(1, 2, 3, 4 << 40),
            RandomStream::at(2, 1, 3, 4),
            RandomStream::at(1, 2, 4, 3),
        ];
        assert!(others.iter().all(|&other| other != base));
        assert_eq!(RandomStream::at(1, 2, 3, 4), base);
    }

    #[test]
    fn moments_are_right() {
        let n = 200_000u64;
        let stream = RandomStream::new(5, 6);
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

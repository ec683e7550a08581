//! A mean over tokens, and its standard error from blocks of neighbours.
//!
//! Tokens next to each other are alike, so their spread understates how much another text would differ. What counts as
//! independent is a block: the tokens that one window scores. With block sums s, block sizes n and the mean m = Σs / Σn,
//! the variance of this ratio is `Σ (s - m n)² · B / (B - 1) / (Σn)²` (B blocks; Cochran 1977, section 6.3).

/// Sums over blocks from which mean and error follow; those of two texts are added.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Blocks {
    /// Blocks.
    count: usize,
    /// Σn.
    pub(crate) tokens: usize,
    /// Σs, negative log-likelihoods in nats.
    pub(crate) nats: f64,
    /// Σs², Σsn and Σn².
    squares: [f64; 3],
}

impl Blocks {
    /// One block of log-probabilities.
    pub(crate) fn push(&mut self, scores: &[f64]) {
        let (s, n) = (-scores.iter().sum::<f64>(), scores.len() as f64);
        self.add(&Self {
            count: 1,
            tokens: scores.len(),
            nats: s,
            squares: [s * s, s * n, n * n],
        });
    }

    /// The blocks of another text.
    pub(crate) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.tokens += other.tokens;
        self.nats += other.nats;
        for (mine, theirs) in self.squares.iter_mut().zip(other.squares) {
            *mine += theirs;
        }
    }

    /// Nats per token.
    pub(crate) fn mean(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// Standard error of [`Blocks::mean`]; `None` for fewer than two blocks.
    pub(crate) fn standard_error(&self) -> Option<f64> {
        let (m, [ss, sn, nn]) = (self.mean(), self.squares);
        // Rounding may leave a little less than nothing where all blocks are alike.
        let spread = (ss - 2.0 * m * sn + m * m * nn).max(0.0);
        let b = self.count as f64;
        (self.count > 1).then(|| (spread * b / (b - 1.0)).sqrt() / self.tokens as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_one_size_give_the_standard_error_of_a_mean() {
        let mut blocks = Blocks::default();
        for mean in [1.0, 2.0, 4.0, 5.0] {
            blocks.push(&[-mean; 10]);
        }
        // Mean 3, sample variance 10/3 of the block means, over 4 blocks.
        assert!((blocks.mean() - 3.0).abs() < 1e-12);
        assert!((blocks.standard_error().unwrap() - (10.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_block_counts_by_its_tokens_and_one_alone_says_nothing() {
        let mut blocks = Blocks::default();
        blocks.push(&[-2.0; 30]);
        assert_eq!(blocks.standard_error(), None);
        blocks.push(&[-4.0; 10]);
        // m = 2.5: residuals -15 and 15.
        assert!((blocks.mean() - 2.5).abs() < 1e-12);
        assert!((blocks.standard_error().unwrap() - (450.0f64 * 2.0).sqrt() / 40.0).abs() < 1e-12);
        let mut alike = Blocks::default();
        alike.push(&[-0.1; 7]);
        alike.push(&[-0.1; 3]);
        assert!(alike.standard_error().unwrap() < 1e-7);
    }
}

//! What many noisy measurements say: medians, ratios within a round, how sure we are, how a cost grows.

/// A median and the interval that holds it with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// The middle value; the mean of the two middle ones of an even number.
///
/// `None` without values.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Drawn with replacement this often: enough for two stable digits of a 95 % interval.
const DRAWS: usize = 4000;

/// The median with its bootstrap interval; the same seed gives the same interval.
#[must_use]
pub fn estimate(values: &[f64], seed: u64) -> Option<Estimate> {
    let middle = median(values)?;
    let mut random = Random(seed | 1);
    let mut medians: Vec<f64> = (0..DRAWS)
        .filter_map(|_| {
            let drawn: Vec<f64> = values.iter().map(|_| values[random.below(values.len())]).collect();
            median(&drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    Some(Estimate { median: middle, low: medians[DRAWS * 25 / 1000], high: medians[DRAWS * 975 / 1000] })
}

/// The exponent `b` of `cost = a * size^b`, fitted by least squares on logarithms.
///
/// `None` with fewer than two sizes, or where something is not positive.
#[must_use]
pub fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    if points.len() < 2 || points.iter().any(|(x, y)| *x <= 0.0 || *y <= 0.0) {
        return None;
    }
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let n = logs.len() as f64;
    let (mean_x, mean_y) = (logs.iter().map(|p| p.0).sum::<f64>() / n, logs.iter().map(|p| p.1).sum::<f64>() / n);
    let spread: f64 = logs.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    let together: f64 = logs.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
    (spread > 0.0).then(|| together / spread)
}

/// xorshift64*: good enough to draw samples, and needs no crate.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(drawn).expect("31 bits") % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_not_moved_by_one_wild_value() {
        assert_eq!(median(&[3.0, 1.0, 900.0]), Some(3.0));
        assert_eq!(median(&[1.0, 2.0, 3.0, 10.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows_when_values_agree() {
        let wild = estimate(&[0.5, 1.0, 1.5, 0.7, 1.2, 0.9, 1.1, 0.6], 7).unwrap();
        let calm = estimate(&[1.0, 1.01, 0.99, 1.0, 1.0, 1.01, 0.99, 1.0], 7).unwrap();
        assert!(wild.low <= wild.median && wild.median <= wild.high);
        assert!(calm.high - calm.low < wild.high - wild.low);
        assert_eq!(estimate(&[2.0], 7), Some(Estimate { median: 2.0, low: 2.0, high: 2.0 }));
    }

    #[test]
    fn the_exponent_tells_linear_from_quadratic() {
        let fit = |power: f64| exponent(&[(1e3, 1e3f64.powf(power)), (1e4, 1e4f64.powf(power)), (1e5, 1e5f64.powf(power))]).unwrap();
        assert!((fit(1.0) - 1.0).abs() < 1e-9);
        assert!((fit(2.0) - 2.0).abs() < 1e-9);
        assert_eq!(exponent(&[(1.0, 1.0)]), None);
        assert_eq!(exponent(&[(1.0, 0.0), (2.0, 1.0)]), None);
    }
}

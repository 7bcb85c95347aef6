//! What clients want: objects by a Zipf law of which a part is each region's own, or a trace.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use rand::{Rng, RngExt as _, seq::SliceRandom as _};

/// Exponent of the Zipf law; web and download traces lie between 0.7 and 1.
const EXPONENT: f64 = 0.9;
/// Share of requests that follow the region's own order of popularity.
const REGIONAL: f64 = 0.3;
/// Median size of an object in bytes, and the spread (of the logarithm) around it.
const SIZE_MEDIAN: f64 = 24e3;
const SIZE_SPREAD: f64 = 1.6;
/// Largest object of the catalogue, in bytes.
const SIZE_MAX: f64 = 64e6;
/// Longest trace, in requests: what fits in memory as numbers.
const TRACE_MAX: usize = 50_000_000;

/// Which object comes next, and how large objects are.
pub struct Demand {
    /// Size of every object, in bytes.
    pub sizes: Vec<u64>,
    source: Source,
}

enum Source {
    /// Cumulated popularity by rank; which object has which rank, in the world and in each region.
    Zipf {
        cumulated: Vec<f64>,
        regional: HashMap<&'static str, Vec<u32>>,
    },
    Trace {
        requests: Vec<u32>,
        next: usize,
    },
}

impl Demand {
    /// `objects` objects, and the regions' own orders of them.
    pub fn zipf(
        objects: u32,
        regions: impl Iterator<Item = &'static str>,
        rng: &mut impl Rng,
    ) -> Self {
        let mut sum = 0.0;
        let popularity = |rank: u32| {
            sum += f64::from(rank + 1).powf(-EXPONENT);
            sum
        };
        let cumulated = (0..objects).map(popularity).collect();
        let sizes = (0..objects).map(|_| size(rng)).collect();
        let mut regional = HashMap::new();
        for region in regions {
            regional.entry(region).or_insert_with(|| {
                let mut order: Vec<u32> = (0..objects).collect();
                order.shuffle(rng);
                order
            });
        }
        Self {
            sizes,
            source: Source::Zipf {
                cumulated,
                regional,
            },
        }
    }

    /// A trace of lines `key,size`.
    ///
    /// # Errors
    ///
    /// The first line that is none, or the trace is too long or empty.
    pub fn trace(text: &str) -> Result<Self> {
        let (mut numbers, mut sizes, mut requests) = (HashMap::new(), Vec::new(), Vec::new());
        for (line, text) in text.lines().enumerate() {
            let bad = || format!("line {} of the trace is not `key,size`", line + 1);
            let (key, size) = text.rsplit_once(',').with_context(bad)?;
            let size: u64 = size.trim().parse().ok().with_context(bad)?;
            let next = u32::try_from(sizes.len()).expect("TRACE_MAX fits");
            let number = *numbers.entry(key).or_insert(next);
            if number == next {
                sizes.push(size);
            }
            requests.push(number);
            ensure!(requests.len() <= TRACE_MAX, "more than {TRACE_MAX} lines");
        }
        ensure!(!requests.is_empty(), "the trace is empty");
        Ok(Self {
            sizes,
            source: Source::Trace { requests, next: 0 },
        })
    }

    /// What a client in `region` wants next.
    pub fn next(&mut self, region: &str, rng: &mut impl Rng) -> u32 {
        match &mut self.source {
            Source::Zipf {
                cumulated,
                regional,
            } => {
                let sum = cumulated.last().copied().unwrap_or_default();
                let at = rng.random::<f64>() * sum;
                let rank = cumulated.partition_point(|c| *c < at);
                let rank = rank.min(cumulated.len() - 1);
                let own = regional
                    .get(region)
                    .filter(|_| rng.random::<f64>() < REGIONAL);
                own.map_or_else(
                    || u32::try_from(rank).expect("ranks are u32"),
                    |order| order[rank],
                )
            }
            Source::Trace { requests, next } => {
                let object = requests[*next];
                *next = (*next + 1) % requests.len();
                object
            }
        }
    }
}

/// Log-normal, by Box and Muller.
fn size(rng: &mut impl Rng) -> u64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * rng.random::<f64>()).cos();
    (SIZE_MEDIAN * (SIZE_SPREAD * normal).exp()).clamp(64.0, SIZE_MAX) as u64
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::*;

    #[test]
    fn a_trace_is_followed_line_by_line_and_begun_again() {
        let mut demand = Demand::trace("a,10\nb,20\na,10\n").unwrap();
        let mut rng = SmallRng::seed_from_u64(1);
        let wanted: Vec<u32> = (0..4).map(|_| demand.next("", &mut rng)).collect();
        assert_eq!((wanted, demand.sizes), (vec![0, 1, 0, 0], vec![10, 20]));
        assert!(Demand::trace("a 10").is_err() && Demand::trace("").is_err());
    }

    #[test]
    fn the_first_of_a_zipf_law_is_wanted_most() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut demand = Demand::zipf(1_000, ["eu", "us"].into_iter(), &mut rng);
        let mut counts = vec![0; 1_000];
        for _ in 0..20_000 {
            counts[demand.next("eu", &mut rng) as usize] += 1;
        }
        assert!(counts[0] > 10 * counts[100], "{:?}", &counts[..10]);
        assert!(demand.sizes.iter().all(|s| (64..=64_000_000).contains(s)));
    }
}

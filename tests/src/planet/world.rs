//! Where nodes are and how long a packet takes between them: real sites with their measured round
//! trips, and a last mile for every node.

use std::collections::HashMap;

use cluster::{
    geo::GeoPoint,
    proximity::{MS_PER_KM, NEAR_MS},
};
use rand::{Rng, RngExt as _};

const SITES: &str = include_str!("../../data/azure-regions.csv");
const ROUND_TRIPS: &str = include_str!("../../data/azure-rtt-ms.csv");

/// Round trip between two machines of one site, without their last miles.
const SAME_SITE_MS: f64 = 0.6;
/// What the last mile adds to a round trip: from a machine in the site's own building to one behind a
/// poor provider.
const LAST_MILE_MS: (f64, f64) = (0.2, 12.0);
/// Variation of every single way, relative, and the mean of what queues add to it.
const JITTER: f64 = 0.03;
const QUEUES_MS: f64 = 0.3;

/// A place where nodes are.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name.
    pub id: String,
    /// Where it is.
    pub point: GeoPoint,
    /// The region label that nodes there have.
    pub region: &'static str,
}

/// The sites, and the round trips between them.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The sites.
    pub sites: Vec<Site>,
    rtt_ms: Vec<Option<f64>>,
}

impl Matrix {
    /// The one in `tests/data`.
    ///
    /// # Panics
    ///
    /// Never: the file is part of the program.
    pub fn shipped() -> Self {
        let mut numbers = HashMap::new();
        let mut sites = Vec::new();
        for line in SITES.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            let degrees = |i: usize| fields[i].parse().expect("degrees");
            let point = GeoPoint::new(degrees(2), degrees(3)).expect("a point on Earth");
            numbers.insert(fields[0], sites.len());
            sites.push(Site {
                id: fields[0].to_owned(),
                point,
                region: region(point),
            });
        }
        let mut rtt_ms = vec![None; sites.len() * sites.len()];
        for line in ROUND_TRIPS.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            let (from, to) = (numbers[fields[0]], numbers[fields[1]]);
            rtt_ms[from * sites.len() + to] = Some(fields[2].parse().expect("milliseconds"));
        }
        Self { sites, rtt_ms }
    }

    /// The round trip from one site to another as it was measured, in milliseconds.
    pub fn measured_ms(&self, from: usize, to: usize) -> Option<f64> {
        self.rtt_ms[from * self.sites.len() + to]
    }

    /// The same, with what is likely in the place of what was not measured.
    pub fn rtt_ms(&self, from: usize, to: usize) -> f64 {
        if from == to {
            return SAME_SITE_MS;
        }
        let likely = || {
            let km = self.sites[from].point.distance_km(self.sites[to].point);
            NEAR_MS + km * MS_PER_KM
        };
        self.measured_ms(from, to)
            .or_else(|| self.measured_ms(to, from))
            .unwrap_or_else(likely)
    }

    /// The number of the site of this name.
    pub fn site(&self, id: &str) -> Option<usize> {
        self.sites.iter().position(|site| site.id == id)
    }
}

/// A coarse label, as an operator would give it.
fn region(point: GeoPoint) -> &'static str {
    match (point.latitude(), point.longitude()) {
        (lat, lon) if lon < -30.0 && lat < 15.0 => "south-america",
        (_, lon) if lon < -100.0 => "america-west",
        (_, lon) if lon < -30.0 => "america-east",
        (lat, lon) if lon < 30.0 && lat < 0.0 => "africa",
        (_, lon) if lon < 30.0 => "europe",
        (_, lon) if lon < 65.0 => "middle-east",
        (_, lon) if lon < 90.0 => "south-asia",
        (lat, _) if lat < -10.0 => "oceania",
        (lat, lon) if lon < 108.0 && lat < 10.0 => "southeast-asia",
        _ => "east-asia",
    }
}

/// A machine at a site.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Number of its site.
    pub site: usize,
    /// What its last mile adds to every round trip, in milliseconds.
    pub last_mile_ms: f64,
    /// What it can send, in bytes per millisecond.
    pub uplink: f64,
    /// Whether it is in a bad way: late with every answer, and sends at a tenth.
    pub slow: bool,
}

/// Where everybody is.
#[derive(Clone, Debug)]
pub struct World {
    /// Sites and round trips.
    pub matrix: Matrix,
    /// The nodes.
    pub machines: Vec<Machine>,
    /// The site where the origin is.
    pub origin: usize,
}

impl World {
    /// `nodes` machines at random sites, `slow` of a hundred in a bad way; the origin is in Virginia.
    ///
    /// # Panics
    ///
    /// Never: the origin's site is in the matrix.
    pub fn new(nodes: usize, slow: f64, rng: &mut impl Rng) -> Self {
        let matrix = Matrix::shipped();
        let machine = |_| {
            let (least, most) = LAST_MILE_MS;
            Machine {
                site: rng.random_range(0..matrix.sites.len()),
                // Most are near the least, a few near the most.
                last_mile_ms: least * (most / least).powf(rng.random::<f64>().powi(2)),
                uplink: [125e3, 125e3, 1250e3][rng.random_range(0..3)],
                slow: rng.random::<f64>() * 100.0 < slow,
            }
        };
        let machines = (0..nodes).map(machine).collect();
        let origin = matrix.site("eastus").expect("the matrix has it");
        Self {
            matrix,
            machines,
            origin,
        }
    }

    /// Round trip between two nodes in milliseconds, without noise.
    pub fn rtt_ms(&self, a: usize, b: usize) -> f64 {
        let (a, b) = (&self.machines[a], &self.machines[b]);
        self.matrix.rtt_ms(a.site, b.site) + a.last_mile_ms + b.last_mile_ms
    }

    /// Round trip between a node and the origin in milliseconds, without noise.
    pub fn origin_rtt_ms(&self, node: usize) -> f64 {
        let machine = &self.machines[node];
        self.matrix.rtt_ms(machine.site, self.origin) + machine.last_mile_ms
    }
}

/// One sample of a duration in milliseconds, with what the network adds.
pub fn noisy(ms: f64, rng: &mut impl Rng) -> f64 {
    let queues = -QUEUES_MS * (1.0 - rng.random::<f64>()).ln();
    ms * (1.0 + JITTER * (rng.random::<f64>() - 0.5)) + queues
}

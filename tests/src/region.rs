//! Places on Earth, and how long a packet takes between them.

use std::time::Duration;

use cluster::geo::GeoPoint;

/// Round-trip time per 100 km of great circle, in milliseconds: the slope of a least-squares line
/// through Microsoft's published medians between 49 Azure regions (2,258 directed pairs, CC BY 4.0,
/// <https://learn.microsoft.com/azure/networking/azure-network-latency>) is 1.43.
const RTT_MS_PER_100_KM: f64 = 1.4;
/// Round-trip time within one place, in milliseconds. The fitted line meets zero distance higher
/// (at 26 ms, cables being no great circles); a lab rather shows the bare distance.
const RTT_MS_AT_HOME: f64 = 1.0;

/// A place where a node may stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// Label as operators write it.
    pub name: &'static str,
    /// The city, for people.
    pub city: &'static str,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
}

const fn region(name: &'static str, city: &'static str, latitude: f64, longitude: f64) -> Region {
    Region {
        name,
        city,
        latitude,
        longitude,
    }
}

/// The places of the lab, in the order in which edges are put there. Far ones first: with three
/// edges, each is on a continent of its own.
pub const REGIONS: [Region; 10] = [
    region("eu-central", "Frankfurt", 50.1109, 8.6821),
    region("us-east", "Virginia", 37.3719, -79.8164),
    region("ap-southeast", "Singapore", 1.3521, 103.8198),
    region("sa-east", "São Paulo", -23.5505, -46.6333),
    region("ap-south", "Sydney", -33.8688, 151.2093),
    region("af-south", "Johannesburg", -25.7313, 28.2184),
    region("ap-northeast", "Tokyo", 35.6762, 139.6503),
    region("in-west", "Pune", 18.5204, 73.8567),
    region("us-west", "Washington", 47.233, -119.852),
    region("eu-west", "London", 51.5074, -0.1278),
];

impl Region {
    /// The region of this label or city, in any case.
    pub fn named(name: &str) -> Option<Self> {
        REGIONS.into_iter().find(|r| {
            r.name.eq_ignore_ascii_case(name) || r.city.to_lowercase() == name.to_lowercase()
        })
    }

    /// Where it is.
    pub fn point(self) -> GeoPoint {
        GeoPoint::new(self.latitude, self.longitude).expect("the table above is on Earth")
    }

    /// One way from here to `other`; half of the round trip that the distance costs.
    pub fn one_way(self, other: Self) -> Duration {
        let km = self.point().distance_km(other.point());
        Duration::from_secs_f64((km / 100.0 * RTT_MS_PER_100_KM + RTT_MS_AT_HOME) / 2_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_like_those_measured_between_real_regions() {
        // Measured medians of the same table, in milliseconds of round trip.
        for (from, to, measured) in [
            ("Frankfurt", "Virginia", 94.0),
            ("Frankfurt", "Singapore", 157.0),
            ("Frankfurt", "London", 17.0),
            ("Singapore", "Tokyo", 73.0),
            ("Sydney", "São Paulo", 299.0),
        ] {
            let (from, to) = (Region::named(from).unwrap(), Region::named(to).unwrap());
            let rtt_ms = from.one_way(to).as_secs_f64() * 2_000.0;
            assert_eq!(from.one_way(to), to.one_way(from));
            assert!(
                (0.5..2.0).contains(&(rtt_ms / measured)),
                "{from:?} {to:?}: {rtt_ms} against {measured}"
            );
        }
        let home = REGIONS[0];
        assert_eq!(home.one_way(home), Duration::from_micros(500));
    }
}

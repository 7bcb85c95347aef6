//! From an address to a place: the operator's own networks first, then the address database.

use std::net::IpAddr;

use cluster::{
    geo::{GeoDb, GeoPoint},
    network::Network,
    wire::Place,
};
use serde::{Deserialize, Serialize};

/// Most networks an operator may place by hand: all are looked at for every client.
pub const NETWORKS_MAX: usize = 1_000;

/// What the licence of the shipped database (CC BY 4.0) asks every page with its results to carry.
pub const ATTRIBUTION: &str = "<a href='https://db-ip.com'>IP Geolocation by DB-IP</a>";

/// `[[geo.network]]`: where the addresses of a network are, better known than by any database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPlace {
    /// The addresses: `10.0.0.0/8`.
    pub cidr: Network,
    /// Label of the region they are in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Degrees north; together with `longitude`, or neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latitude: Option<f64>,
    /// Degrees east.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longitude: Option<f64>,
}

/// What is known of an address.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Where it is.
    pub place: Option<Place>,
    /// The region that the operator's networks put it in; empty when none does.
    pub region: String,
}

impl Known {
    /// Where it is, as a point.
    pub fn point(&self) -> Option<GeoPoint> {
        self.place.as_ref().and_then(point_of)
    }

    /// How it is known, for metrics: `configured`, `city`, `country` or `unknown`.
    pub fn source(&self) -> &str {
        self.place.as_ref().map_or("unknown", |p| &p.source)
    }
}

/// Turns addresses into places.
#[derive(Debug)]
pub struct Places {
    /// The longest prefix first, so that the first that contains an address is the one meant.
    networks: Vec<NetworkPlace>,
    database: Option<GeoDb>,
}

impl Places {
    /// Places by these networks, and this database for all other addresses.
    pub fn new(mut networks: Vec<NetworkPlace>, database: Option<GeoDb>) -> Self {
        networks.sort_by_key(|n| std::cmp::Reverse(n.cidr.prefix()));
        Self { networks, database }
    }

    /// What is known of `address`. A network that gives a region only leaves the point to the
    /// database.
    pub fn of(&self, address: IpAddr) -> Known {
        let network = self.networks.iter().find(|n| n.cidr.contains(address));
        let configured = network.and_then(|n| GeoPoint::new(n.latitude?, n.longitude?));
        let place = match (configured, &self.database) {
            (Some(point), _) => Some(configured_place(point)),
            (None, Some(database)) => database.locate(address).map(|found| Place {
                latitude: found.point.latitude(),
                longitude: found.point.longitude(),
                country: found.country,
                city: found.city,
                source: found.source.as_str().to_owned(),
            }),
            (None, None) => None,
        };
        Known {
            place,
            region: network.map(|n| n.region.clone()).unwrap_or_default(),
        }
    }

    /// What the database is, in a few words.
    pub fn describe(&self) -> String {
        self.database
            .as_ref()
            .map_or_else(|| "none".to_owned(), GeoDb::describe)
    }
}

/// A place that an operator gave, for a node or for a network.
pub fn configured_place(point: GeoPoint) -> Place {
    Place {
        latitude: point.latitude(),
        longitude: point.longitude(),
        country: None,
        city: None,
        source: "configured".to_owned(),
    }
}

/// The point of a place.
pub fn point_of(place: &Place) -> Option<GeoPoint> {
    GeoPoint::new(place.latitude, place.longitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_network_wins_and_the_database_answers_for_the_rest() {
        let network = |cidr: &str, region: &str, point: Option<(f64, f64)>| NetworkPlace {
            cidr: cidr.parse().unwrap(),
            region: region.into(),
            latitude: point.map(|p| p.0),
            longitude: point.map(|p| p.1),
        };
        let places = Places::new(
            vec![
                network("10.0.0.0/8", "lab", Some((1.0, 2.0))),
                network("10.9.0.0/16", "annex", Some((3.0, 4.0))),
                network("193.0.0.0/16", "eu", None),
            ],
            Some(GeoDb::shipped()),
        );
        let of = |address: &str| places.of(address.parse().unwrap());
        let known = of("10.9.8.7");
        assert_eq!(
            (known.region.as_str(), known.source()),
            ("annex", "configured")
        );
        assert_eq!(known.point(), GeoPoint::new(3.0, 4.0));
        assert_eq!(of("10.1.1.1").region, "lab");
        // Amsterdam, with a region from the operator and a point from the database.
        let known = of("193.0.6.139");
        assert_eq!((known.region.as_str(), known.source()), ("eu", "city"));
        assert_eq!(known.place.unwrap().country.as_deref(), Some("NL"));
        assert_eq!(of("192.168.1.1"), Known::default());
        assert!(
            places
                .describe()
                .starts_with("DBIP-City-Lite-Reduced, city, built 2026-06")
        );
        assert_eq!(
            Places::new(vec![], None).of([193, 0, 6, 139].into()),
            Known::default()
        );
    }
}

//! Points, distances and address databases. The only file that names maxminddb.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
};

use maxminddb::{Reader, WithinOptions};
use serde::{Deserialize, Serialize, de::IgnoredAny};

/// A point on Earth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GeoPoint {
    latitude: f64,
    longitude: f64,
}

/// Mean radius of the Earth (IUGG).
pub(crate) const EARTH_RADIUS_KM: f64 = 6371.0088;

impl GeoPoint {
    /// A point by degrees north (-90 to 90) and east (-180 to 180); `None` outside of these.
    pub fn new(latitude: f64, longitude: f64) -> Option<Self> {
        let fits = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        fits.then_some(Self {
            latitude,
            longitude,
        })
    }

    /// Degrees north.
    pub fn latitude(self) -> f64 {
        self.latitude
    }

    /// Degrees east.
    pub fn longitude(self) -> f64 {
        self.longitude
    }

    /// Great-circle distance in kilometres (haversine; within 0.5 % of the ellipsoid's).
    pub fn distance_km(self, other: Self) -> f64 {
        let (lat1, lat2) = (self.latitude.to_radians(), other.latitude.to_radians());
        let half_dlat = (lat2 - lat1) / 2.0;
        let half_dlon = (other.longitude - self.longitude).to_radians() / 2.0;
        let h = half_dlat.sin().powi(2) + lat1.cos() * lat2.cos() * half_dlon.sin().powi(2);
        2.0 * EARTH_RADIUS_KM * h.sqrt().min(1.0).asin()
    }
}

/// An address database, held in memory. Three shapes of MaxMind DB are understood:
///
/// - *city*: GeoIP2 and GeoLite2 City, GeoIP2 Enterprise, and what is laid out like them;
/// - *country*: GeoIP2 and GeoLite2 Country (`country.iso_code`);
/// - *country code*: `{country_code}`, as IPtoASN's.
///
/// Anything else is refused when it is opened: a database of an unknown shape decodes without an
/// error and answers nothing, which nobody would notice.
pub struct GeoDb {
    reader: Reader<Vec<u8>>,
    shape: Shape,
    countries: HashMap<&'static str, GeoPoint>,
}

/// Where an address is.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The place.
    pub point: GeoPoint,
    /// ISO 3166-1 alpha-2 code.
    pub country: Option<String>,
    /// City, in English.
    pub city: Option<String>,
    /// What the point is.
    pub source: Source,
}

/// What a located point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The database's own coordinates for the address.
    City,
    /// The middle of its country: the database knows no more.
    Country,
}

impl Source {
    /// As [`crate::wire::Place::source`] says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::City => "city",
            Self::Country => "country",
        }
    }
}

/// Which address database to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// The one that ships with the project.
    Shipped,
    /// The operator's.
    File(PathBuf),
    /// None.
    None,
}

impl Database {
    /// From the configuration: a path, `"none"`, or nothing for the one that ships.
    pub fn named(path: Option<&str>) -> Self {
        match path {
            None => Self::Shipped,
            Some("none") => Self::None,
            Some(path) => Self::File(path.into()),
        }
    }

    /// Reads it. Blocks for some tens of milliseconds.
    ///
    /// # Errors
    ///
    /// As [`GeoDb::open`].
    pub fn open(&self) -> Result<Option<GeoDb>, GeoError> {
        match self {
            Self::Shipped => Ok(Some(GeoDb::shipped())),
            Self::File(path) => GeoDb::open(path).map(Some),
            Self::None => Ok(None),
        }
    }
}

/// Why a database is refused.
#[derive(Debug, thiserror::Error)]
pub enum GeoError {
    /// The file cannot be read.
    #[error("geo database {}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a database that can be used.
    #[error("geo database {name}: {reason}")]
    Unusable {
        /// Its path, or `(in memory)`.
        name: String,
        /// Why not.
        reason: String,
    },
}

/// Largest database, unpacked. The largest on offer (Enterprise) is about half of it.
pub const DATABASE_BYTES_MAX: u64 = 1 << 30;
/// How many records are looked at to tell the shape. Databases begin with their least populated
/// networks, so a few would not do; more take longer than they tell.
const PROBED_RECORDS_MAX: usize = 2_000;
/// What a zstd frame begins with (RFC 8878 §3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The database that ships with the project: DB-IP's City Lite, reduced (see `cluster/data`).
const SHIPPED: &[u8] = include_bytes!("../data/geo-city-lite.mmdb.zst");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    City,
    Country,
    CountryCode,
}

impl GeoDb {
    /// Reads a database from a file, which may be compressed with zstd. Blocks; tens of
    /// milliseconds for the larger ones.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is no database of a known shape; both name the path.
    pub fn open(path: &Path) -> Result<Self, GeoError> {
        let unreadable = |source| GeoError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(DATABASE_BYTES_MAX + 1).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        Self::checked(bytes, &path.display().to_string())
    }

    /// Takes a database from memory; it may be compressed with zstd.
    ///
    /// # Errors
    ///
    /// It is no database of a known shape.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GeoError> {
        Self::checked(bytes, "(in memory)")
    }

    /// The database that ships with the project. Blocks for some tens of milliseconds.
    ///
    /// # Panics
    ///
    /// Never: the tests open the very same bytes.
    pub fn shipped() -> Self {
        Self::from_bytes(SHIPPED.to_vec()).expect("the shipped database is the one the tests open")
    }

    fn checked(bytes: Vec<u8>, name: &str) -> Result<Self, GeoError> {
        let unusable = |reason: String| GeoError::Unusable {
            name: name.to_owned(),
            reason,
        };
        let bytes = unpacked(bytes).map_err(|e| unusable(format!("damaged zstd frame: {e}")))?;
        if bytes.len() as u64 > DATABASE_BYTES_MAX {
            return Err(unusable(format!("larger than {DATABASE_BYTES_MAX} bytes")));
        }
        let reader = Reader::from_source(bytes)
            .map_err(|e| unusable(format!("not a MaxMind database, or damaged: {e}")))?;
        let shape = probe(&reader).map_err(unusable)?;
        Ok(Self {
            reader,
            shape,
            countries: countries(),
        })
    }

    /// Where `address` is; `None` when the database does not know (private networks never are
    /// known). An IPv4 address in IPv6 clothes is the IPv4 address.
    pub fn locate(&self, address: IpAddr) -> Option<Located> {
        let found = self.reader.lookup(address.to_canonical()).ok()?;
        let record: Record<'_> = found.decode().ok()??;
        let country = record.iso_code();
        let own = record.point();
        let source = if own.is_some() {
            Source::City
        } else {
            Source::Country
        };
        Some(Located {
            point: own.or_else(|| self.country_middle(country?))?,
            country: country.map(str::to_owned),
            city: record.city.and_then(|c| c.names?.en).map(str::to_owned),
            source,
        })
    }

    /// The ISO 3166-1 alpha-2 code of the country of `address`; `None` when the database does not
    /// know it. Where the address is registered counts if nothing better is said.
    pub fn country(&self, address: IpAddr) -> Option<&str> {
        let found = self.reader.lookup(address.to_canonical()).ok()?;
        let record: Record<'_> = found.decode().ok()??;
        record.iso_code()
    }

    /// The middle of a country (of its largest piece) by its ISO 3166-1 alpha-2 code.
    pub fn country_middle(&self, iso_code: &str) -> Option<GeoPoint> {
        self.countries.get(iso_code).copied()
    }

    /// What the database is, in a few words: `GeoLite2-City, city, built 2024-05-01`.
    pub fn describe(&self) -> String {
        let meta = self.reader.metadata();
        let shape = match self.shape {
            Shape::City => "city",
            Shape::Country | Shape::CountryCode => "country only",
        };
        let (year, month, day) = civil_date(meta.build_epoch / 86_400);
        format!(
            "{}, {shape}, built {year:04}-{month:02}-{day:02}",
            meta.database_type
        )
    }
}

impl fmt::Debug for GeoDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GeoDb({})", self.describe())
    }
}

/// The parts of a record that place an address, in all known shapes at once.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    city: Option<City<'a>>,
    #[serde(borrow)]
    country: Option<Country<'a>>,
    /// Where the network is registered: better than nothing, if the country is not said.
    #[serde(borrow)]
    registered_country: Option<Country<'a>>,
    location: Option<Location>,
    country_code: Option<&'a str>,
}

#[derive(Deserialize)]
struct City<'a> {
    #[serde(borrow)]
    names: Option<Names<'a>>,
}

#[derive(Deserialize)]
struct Names<'a> {
    en: Option<&'a str>,
}

#[derive(Deserialize)]
struct Country<'a> {
    iso_code: Option<&'a str>,
}

#[derive(Deserialize)]
struct Location {
    latitude: Option<f64>,
    longitude: Option<f64>,
}

impl<'a> Record<'a> {
    fn nested_code(&self) -> Option<&'a str> {
        let code = |c: &Option<Country<'a>>| c.as_ref().and_then(|c| c.iso_code);
        code(&self.country).or_else(|| code(&self.registered_country))
    }

    fn iso_code(&self) -> Option<&'a str> {
        self.nested_code().or(self.country_code)
    }

    fn point(&self) -> Option<GeoPoint> {
        let location = self.location.as_ref()?;
        GeoPoint::new(location.latitude?, location.longitude?)
    }
}

/// Tells the shape by what the records hold: names of types are free text, and lie.
fn probe(reader: &Reader<Vec<u8>>) -> Result<Shape, String> {
    let kind = &reader.metadata().database_type;
    let damaged = |e: maxminddb::MaxMindDbError| format!("damaged ({kind}): {e}");
    let networks = reader.networks(WithinOptions::default()).map_err(damaged)?;
    let mut shape = None;
    let mut keys = BTreeSet::new();
    for found in networks.take(PROBED_RECORDS_MAX) {
        let found = found.map_err(damaged)?;
        let here: BTreeMap<&str, IgnoredAny> = match found.decode() {
            Ok(record) => record.unwrap_or_default(),
            Err(e) => return Err(format!("its records ({kind}) are not maps: {e}")),
        };
        keys.extend(here.into_keys().map(str::to_owned));
        let record: Record<'_> = match found.decode() {
            Ok(Some(record)) => record,
            Ok(None) => continue,
            Err(e) => return Err(format!("its records ({kind}) have an unknown shape: {e}")),
        };
        if record.point().is_some() {
            return Ok(Shape::City);
        }
        if record.nested_code().is_some() {
            shape = Some(Shape::Country);
        } else if shape.is_none() && record.country_code.is_some() {
            shape = Some(Shape::CountryCode);
        }
    }
    shape.ok_or_else(|| {
        let keys: Vec<_> = keys.iter().take(8).map(String::as_str).collect();
        format!(
            "{kind} does not tell places (a City or Country database does); its records hold {}",
            if keys.is_empty() {
                "nothing".to_owned()
            } else {
                keys.join(", ")
            }
        )
    })
}

fn unpacked(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if !bytes.starts_with(&ZSTD_MAGIC) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    zstd::Decoder::new(bytes.as_slice())?
        .take(DATABASE_BYTES_MAX + 1)
        .read_to_end(&mut plain)?;
    Ok(plain)
}

/// Middles of countries (`iso2,name,lat,lon`); where they come from: `data/README.md`.
const COUNTRIES: &str = include_str!("../data/countries.csv");

/// Territories that [`COUNTRIES`] draws as part of another country, or not at all.
const TERRITORIES: [(&str, f64, f64); 8] = [
    ("BQ", 12.18, -68.26),
    ("GF", 3.93, -53.13),
    ("GP", 16.25, -61.55),
    ("MQ", 14.64, -61.02),
    ("RE", -21.12, 55.53),
    ("SJ", 78.90, 18.00),
    ("TV", -8.52, 179.20),
    ("YT", -12.83, 45.15),
];

fn countries() -> HashMap<&'static str, GeoPoint> {
    let rows = COUNTRIES.lines().skip(1).filter_map(|row| {
        // Names may hold commas; codes and numbers do not.
        let (code, rest) = row.split_once(',')?;
        let mut numbers = rest.rsplitn(3, ',');
        let longitude = numbers.next()?.parse().ok()?;
        let latitude = numbers.next()?.parse().ok()?;
        Some((code, latitude, longitude))
    });
    rows.chain(TERRITORIES)
        .filter_map(|(code, latitude, longitude)| Some((code, GeoPoint::new(latitude, longitude)?)))
        .collect()
}

/// Year, month and day of a day since 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era_day = days % 146_097;
    let era_year = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
    let shifted = (5 * year_day + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = days / 146_097 * 400 + era_year + u64::from(month <= 2);
    (year, month, year_day - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("data")
            .join(name)
    }

    fn at(db: &GeoDb, address: &str) -> Option<Located> {
        db.locate(address.parse().unwrap())
    }

    #[test]
    fn distances_are_those_of_the_globe() {
        let at = |lat, lon| GeoPoint::new(lat, lon).unwrap();
        for (a, b, km) in [
            (at(50.11, 8.68), at(40.71, -74.01), 6200.0), // Frankfurt, New York
            (at(35.68, 139.69), at(37.77, -122.42), 8270.0), // Tokyo, San Francisco: over the date line
            (at(90.0, 0.0), at(-90.0, 0.0), 20015.0),
            (at(1.0, 1.0), at(1.0, 1.0), 0.0),
        ] {
            assert!((a.distance_km(b) - km).abs() < 15.0, "{a:?} {b:?}");
        }
        assert!(GeoPoint::new(f64::NAN, 0.0).is_none());
        assert!(GeoPoint::new(0.0, 181.0).is_none());
    }

    /// The addresses and answers are those of MaxMind's published test data.
    #[test]
    fn a_city_database_tells_city_country_and_point() {
        for name in ["GeoIP2-City-Test", "GeoLite2-City-Test"] {
            let db = GeoDb::open(&data(&format!("maxmind-test/{name}.mmdb"))).unwrap();
            let linkoping = at(&db, "89.160.20.112").unwrap();
            assert_eq!(linkoping.country.as_deref(), Some("SE"));
            assert_eq!(linkoping.city.as_deref(), Some("Linköping"));
            assert_eq!(linkoping.source, Source::City);
            assert!((linkoping.point.latitude() - 58.4167).abs() < 0.01);
            assert_eq!(at(&db, "::ffff:89.160.20.112"), Some(linkoping));
            assert_eq!(at(&db, "127.0.0.1"), None);
            assert!(
                db.describe()
                    .contains(&format!("{}, city, built 20", &name[..name.len() - 5]))
            );
        }
    }

    #[test]
    fn a_country_database_answers_with_the_middle_of_the_country() {
        let db = GeoDb::open(&data("maxmind-test/GeoLite2-Country-Test.mmdb")).unwrap();
        let sweden = at(&db, "89.160.20.112").unwrap();
        assert_eq!(sweden.source, Source::Country);
        assert_eq!(sweden.country.as_deref(), Some("SE"));
        assert_eq!(sweden.city, None);
        assert!(sweden.point.distance_km(GeoPoint::new(59.3, 18.1).unwrap()) < 1000.0);
        assert!(db.describe().contains("country only"));
    }

    /// A MaxMind DB by its specification: one node, whose left half (0.0.0.0/1) has the record
    /// `{key: value}`.
    fn tiny_database(kind: &str, key: &str, value: &str) -> Vec<u8> {
        let text = |s: &str| [&[0x40 | s.len() as u8][..], s.as_bytes()].concat();
        let number = |bits: u8, n: u8| vec![bits << 5 | 1, n];
        let map = |entries: &[(&str, Vec<u8>)]| {
            let mut bytes = vec![0xe0 | entries.len() as u8];
            for (key, value) in entries {
                bytes.extend([text(key), value.clone()].concat());
            }
            bytes
        };
        let mut bytes = vec![0, 0, 17, 0, 0, 1];
        bytes.extend([0; 16]);
        bytes.extend(map(&[(key, text(value))]));
        bytes.extend(b"\xab\xcd\xefMaxMind.com");
        bytes.extend(map(&[
            ("binary_format_major_version", number(5, 2)),
            ("binary_format_minor_version", number(5, 0)),
            ("build_epoch", vec![1, 2, 9]),
            ("database_type", text(kind)),
            ("description", map(&[("en", text("test"))])),
            ("ip_version", number(5, 4)),
            ("languages", vec![0, 4]),
            ("node_count", number(6, 1)),
            ("record_size", number(5, 24)),
        ]));
        bytes
    }

    #[test]
    fn the_shape_is_told_by_the_records_and_not_by_the_name_of_the_type() {
        let db = GeoDb::from_bytes(tiny_database("ipinfo City", "country_code", "RE")).unwrap();
        let reunion = at(&db, "1.2.3.4").unwrap();
        assert_eq!(
            (reunion.country.as_deref(), reunion.source),
            (Some("RE"), Source::Country)
        );
        assert_eq!(at(&db, "200.1.1.1"), None);
        assert_eq!(at(&db, "2001:db8::1"), None);
        assert_eq!(db.describe(), "ipinfo City, country only, built 1970-01-01");
        for (key, value, told) in [
            ("city", "Berlin", "have an unknown shape"),
            ("colour", "red", "its records hold colour"),
        ] {
            let error = GeoDb::from_bytes(tiny_database("GeoIP2-City", key, value)).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn the_shipped_database_locates_real_addresses() {
        let db = GeoDb::shipped();
        for (address, country, (lat, lon)) in [
            ("193.0.6.139", "NL", (52.37, 4.90)),     // RIPE NCC, Amsterdam
            ("202.12.29.175", "AU", (-27.47, 153.0)), // APNIC, Brisbane
            ("133.11.0.1", "JP", (35.68, 139.69)),    // University of Tokyo
        ] {
            let found = at(&db, address).unwrap();
            assert_eq!(found.country.as_deref(), Some(country), "{address}");
            assert_eq!(db.country(address.parse().unwrap()), Some(country));
            let km = found.point.distance_km(GeoPoint::new(lat, lon).unwrap());
            assert!(km < 300.0, "{address}: {found:?} is {km} km off");
        }
        assert_eq!(at(&db, "10.0.0.1"), None);
        assert_eq!(db.country([10, 0, 0, 1].into()), None);
        assert!(at(&db, "2001:67c:2e8:22::c100:68b").is_some());
    }

    #[test]
    fn what_tells_no_places_is_refused_with_its_path_and_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let city = std::fs::read(data("maxmind-test/GeoLite2-City-Test.mmdb")).unwrap();
        let packed = zstd::encode_all(city.as_slice(), 3).unwrap();
        for (path, told) in [
            (
                data("maxmind-test/GeoLite2-ASN-Test.mmdb"),
                "hold autonomous_system_number, autonomous_system_organization",
            ),
            (file("garbage.mmdb", b"garbage"), "not a MaxMind database"),
            (file("empty.mmdb", b""), "not a MaxMind database"),
            (
                file("half.mmdb", &city[..city.len() / 2]),
                "not a MaxMind database",
            ),
            (
                file("half.zst", &packed[..packed.len() / 2]),
                "damaged zstd",
            ),
            (dir.path().join("none.mmdb"), "cannot be read"),
        ] {
            let error = GeoDb::open(&path).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains(told), "{error:?} should tell {told:?}");
        }
        assert!(GeoDb::from_bytes(packed).is_ok());
    }

    #[test]
    fn damage_anywhere_is_an_answer_or_none_but_never_a_panic() {
        let good = std::fs::read(data("maxmind-test/GeoLite2-City-Test.mmdb")).unwrap();
        let mut seed = 0x9e37_79b9_u32;
        for _ in 0..200 {
            let mut bytes = good.clone();
            for _ in 0..8 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let place = seed as usize % bytes.len();
                bytes[place] ^= (seed >> 24) as u8 | 1;
            }
            if let Ok(db) = GeoDb::from_bytes(bytes) {
                let _ = (
                    at(&db, "89.160.20.112"),
                    at(&db, "2001:218::1"),
                    db.describe(),
                );
            }
        }
    }

    #[test]
    fn every_country_of_the_table_has_a_middle() {
        let all = countries();
        assert_eq!(all.len(), 236 + TERRITORIES.len());
        assert!(all.keys().all(|code| code.len() == 2));
        for code in ["FR", "RE", "TV", "US"] {
            assert!(all.contains_key(code), "{code}");
        }
    }

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (11_016, (2000, 2, 29)),
            (20_454, (2026, 1, 1)),
        ] {
            assert_eq!(civil_date(days), date);
        }
    }
}

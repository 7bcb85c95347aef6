//! Who is served: the access rules of a site, one after the other.

use std::net::IpAddr;

use cluster::{
    network::Network,
    site::rules::{Access, Action, UNKNOWN_COUNTRY},
};
use http::Method;

use super::path::{Prefix, Readings};

/// An access rule, compiled.
#[derive(Debug)]
pub struct Gate {
    action: Action,
    status: u16,
    paths: Vec<Prefix>,
    methods: Vec<Method>,
    addresses: Vec<Network>,
    countries: Vec<String>,
}

/// What access rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Visit<'a> {
    /// The path.
    pub path: &'a Readings<'a>,
    /// The method.
    pub method: &'a Method,
    /// The client's address; where it is unknown, no rule about addresses or countries is for it.
    pub client: Option<IpAddr>,
}

/// What a site's rules say of who is served, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request is served.
    Serve,
    /// What it wants is taken down, for everybody.
    Gone {
        /// The takedown that says so, by its place among the site's.
        place: usize,
    },
    /// It is not.
    Deny {
        /// The status of the answer: 403 or 451.
        status: u16,
        /// The rule that says so, by its place among the site's.
        rule: usize,
    },
}

/// Judges a request. `country` is asked only when a rule that is otherwise for the request needs to
/// know it; it says `None` for what nobody knows.
pub fn judge<'a>(
    gates: &[Gate],
    visit: Visit<'_>,
    country: impl Fn(IpAddr) -> Option<&'a str>,
) -> Verdict {
    match gates.iter().position(|gate| gate.is_for(visit, &country)) {
        Some(rule) if gates[rule].action == Action::Deny => {
            let status = gates[rule].status;
            Verdict::Deny { status, rule }
        }
        _ => Verdict::Serve,
    }
}

impl Gate {
    /// Compiles a rule, which has been checked.
    pub fn new(rule: &Access) -> Self {
        let methods = rule
            .methods
            .iter()
            .map(|name| Method::from_bytes(name.as_bytes()));
        Self {
            action: rule.action,
            status: rule.denied_with(),
            paths: rule.paths.iter().map(|path| Prefix::new(path)).collect(),
            methods: methods.filter_map(Result::ok).collect(),
            addresses: rule.addresses.clone(),
            countries: rule.countries.clone(),
        }
    }

    /// Whether it matters to the rule what the path is.
    pub fn is_about_paths(&self) -> bool {
        !self.paths.is_empty()
    }

    fn is_for<'a>(&self, visit: Visit<'_>, country: &impl Fn(IpAddr) -> Option<&'a str>) -> bool {
        let Visit {
            path,
            method,
            client,
        } = visit;
        let begins = |prefix: &Prefix| match self.action {
            Action::Deny => path.any_begins_with(prefix),
            Action::Allow => path.all_begin_with(prefix),
        };
        let inside = |address| {
            self.addresses
                .iter()
                .any(|network| network.contains(address))
        };
        let among = |address| {
            let code = country(address).unwrap_or(UNKNOWN_COUNTRY);
            self.countries.iter().any(|own| own == code)
        };
        (self.methods.is_empty() || self.methods.contains(method))
            && (self.paths.is_empty() || self.paths.iter().any(begins))
            && (self.addresses.is_empty() || client.is_some_and(inside))
            && (self.countries.is_empty() || client.is_some_and(among))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(text: &str) -> Vec<Gate> {
        #[derive(serde::Deserialize)]
        struct Written {
            access: Vec<Access>,
        }
        let written: Written = toml::from_str(text).unwrap();
        written.access.iter().map(Gate::new).collect()
    }

    fn country(address: IpAddr) -> Option<&'static str> {
        match address {
            IpAddr::V4(v4) if v4.octets()[0] == 1 => Some("FR"),
            IpAddr::V4(v4) if v4.octets()[0] == 2 => Some("US"),
            _ => None,
        }
    }

    /// `None`: served; else the status and the number of the rule, from 1 on.
    fn judged(gates: &[Gate], method: &str, path: &str, client: &str) -> Option<(u16, usize)> {
        let visit = Visit {
            path: &Readings::of(path.as_bytes()),
            method: &method.parse().unwrap(),
            client: client.parse().ok(),
        };
        match judge(gates, visit, country) {
            Verdict::Serve | Verdict::Gone { .. } => None,
            Verdict::Deny { status, rule } => Some((status, rule + 1)),
        }
    }

    #[test]
    fn the_first_rule_that_is_for_a_request_decides() {
        let gates = gates(
            r"
            [[access]]
            action = 'allow'
            paths = ['/admin/']
            addresses = ['10.0.0.0/8', '::1']
            [[access]]
            action = 'deny'
            paths = ['/admin/', '/.git']
            [[access]]
            action = 'deny'
            methods = ['PUT', 'DELETE', 'PURGE']
            [[access]]
            action = 'deny'
            countries = ['FR', '??']
            paths = ['/film/']
            status = 451
            ",
        );
        for (method, path, client, expected) in [
            ("GET", "/", "2.0.0.1", None),
            ("GET", "/admin/x", "10.1.2.3", None),
            ("GET", "/admin/x", "::ffff:10.1.2.3", None),
            ("GET", "/admin/x", "::1", None),
            ("GET", "/admin/x", "11.1.2.3", Some((403, 2))),
            ("GET", "/admin/x", "", Some((403, 2))),
            ("GET", "/x/../admin/x", "11.1.2.3", Some((403, 2))),
            // What would be allowed in one form only is not.
            ("GET", "/admin/../.git/config", "10.1.2.3", Some((403, 2))),
            ("GET", "/.git/config", "10.1.2.3", Some((403, 2))),
            ("DELETE", "/", "2.0.0.1", Some((403, 3))),
            ("DELETE", "/admin/", "10.0.0.1", None),
            ("delete", "/", "2.0.0.1", None),
            ("PURGE", "/", "2.0.0.1", Some((403, 3))),
            ("GET", "/film/1", "2.0.0.1", None),
            ("GET", "/film/1", "1.0.0.1", Some((451, 4))),
            ("HEAD", "/%66ilm/1", "1.0.0.1", Some((451, 4))),
            ("GET", "/film/1", "192.168.0.1", Some((451, 4))),
            ("GET", "/film/1", "", None),
            ("GET", "/films", "1.0.0.1", None),
        ] {
            assert_eq!(
                judged(&gates, method, path, client),
                expected,
                "{method} {path} {client}"
            );
        }
    }

    #[test]
    fn a_rule_without_lists_is_for_everybody() {
        let gates = gates(
            "[[access]]\naction = 'allow'\naddresses = ['10.0.0.0/8']\n[[access]]\naction = 'deny'",
        );
        assert_eq!(judged(&gates, "GET", "/", "10.0.0.1"), None);
        assert_eq!(judged(&gates, "GET", "/", "9.0.0.1"), Some((403, 2)));
        assert_eq!(judged(&[], "GET", "/", "9.0.0.1"), None);
    }

    #[test]
    fn a_country_is_looked_up_only_for_whom_it_matters() {
        let gates = gates("[[access]]\naction = 'deny'\npaths = ['/a']\ncountries = ['FR']");
        let visit = Visit {
            path: &Readings::of(b"/b"),
            method: &Method::GET,
            client: Some([1, 1, 1, 1].into()),
        };
        let never = |_| panic!("nobody needs to know");
        assert_eq!(judge(&gates, visit, never), Verdict::Serve);
    }
}

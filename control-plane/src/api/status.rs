//! `GET /`: a status page for people, without scripts.

use std::{fmt::Write, sync::Arc};

use axum::{
    extract::State,
    http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use cluster::wire::NodeStatus;

use super::App;
use crate::places::ATTRIBUTION;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;\
padding:0 1rem}table{border-collapse:collapse;width:100%}th,td{text-align:left;\
padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ccc}.gone{color:#999}\
td.n,th.n{text-align:right}";

/// The page. Its words come from other nodes in part, so everything is escaped, and the page may
/// load nothing.
pub(super) async fn page(State(app): State<Arc<App>>) -> Response {
    let sites = app.sites.now();
    let html = render(
        app.id.as_str(),
        &app.atlas().statuses(),
        sites.map().sites().len(),
        sites.version(),
        &app.places.describe(),
    );
    let fields = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
    ];
    (fields, html).into_response()
}

fn render(id: &str, nodes: &[NodeStatus], sites: usize, version: u64, database: &str) -> String {
    let mut rows = String::new();
    for node in nodes {
        let place = node.location.as_ref().map_or_else(String::new, |place| {
            let name = match (&place.city, &place.country) {
                (Some(city), Some(country)) => format!("{city}, {country} "),
                (_, Some(country)) => format!("{country} "),
                _ => String::new(),
            };
            let (latitude, longitude) = (place.latitude, place.longitude);
            format!("{name}({latitude:.2}, {longitude:.2}; {})", place.source)
        });
        let state = if node.alive { phase(node) } else { "gone" };
        let class = if node.alive { "" } else { " class=gone" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            rows,
            "<tr{class}><td>{}<td>{}<td>{state}<td>{}<td>{}<td>{}\
             <td class=n>{}<td class=n>{}<td class=n>{}</tr>",
            escaped(node.id.as_str()),
            role(node),
            escaped(&node.region),
            escaped(&place),
            escaped(&node.http),
            node.load.in_flight,
            node.load.bytes_per_s / 1_000,
            node.sites_version,
        );
    }
    let credit = if database.starts_with("DBIP") {
        format!("<p>{ATTRIBUTION}</p>")
    } else {
        String::new()
    };
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content='width=device-width'><title>{id}: CDN</title>\
         <style>{STYLE}</style><h1>{id}</h1>\
         <p>{} nodes alive; {sites} sites, version {version}; addresses located by: {}.\n\
         <table><thead><tr><th>node<th>role<th>state<th>region<th>place<th>clients\
         <th class=n>requests<th class=n>kB/s<th class=n>sites</thead>\n<tbody>{rows}</tbody></table>\
         {credit}</html>\n",
        nodes.iter().filter(|n| n.alive).count(),
        escaped(database),
        id = escaped(id),
    )
}

/// The word for a node's phase.
pub(crate) fn phase(node: &NodeStatus) -> &'static str {
    use cluster::node::Phase;
    match node.phase {
        Phase::Starting => "starting",
        Phase::Ready => "ready",
        Phase::Draining => "draining",
    }
}

/// The word for a node's role.
pub(crate) fn role(node: &NodeStatus) -> &'static str {
    use cluster::node::Role;
    match node.role {
        Role::Edge => "edge",
        Role::Control => "control",
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use cluster::{
        node::{NodeInfo, Role},
        view::ClusterView,
    };

    use super::*;
    use crate::{atlas::Atlas, places::Places};

    #[test]
    fn what_nodes_say_is_escaped_and_the_source_of_places_is_credited() {
        let mut node = NodeInfo::new("e".parse().unwrap(), Role::Edge);
        node.region = "<script>'\"&".into();
        let atlas = Atlas::new(
            &ClusterView::new([node]),
            vec![],
            &Places::new(vec![], None),
            |_| None,
        );
        let page = render(
            "cp",
            &atlas.statuses(),
            1,
            7,
            "DBIP-City-Lite-Reduced, city",
        );
        assert!(
            page.contains("<td>&lt;script&gt;&#39;&quot;&amp;<td>"),
            "{page}"
        );
        assert!(page.contains("<a href='https://db-ip.com'>IP Geolocation by DB-IP</a>"));
        assert!(!render("cp", &[], 0, 0, "none").contains("db-ip"));
    }
}

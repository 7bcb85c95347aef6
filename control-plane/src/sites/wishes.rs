//! Wishes, for tests.

use cluster::{site::Site, wire::SiteAction};

use super::Wish;

pub(super) fn put(site: Site) -> Wish {
    Wish {
        name: site.name.clone(),
        site: Some(site),
        action: SiteAction::Put,
        by: "me".into(),
    }
}

pub(super) fn delete(name: &str) -> Wish {
    Wish {
        name: name.into(),
        site: None,
        action: SiteAction::Delete,
        by: "me".into(),
    }
}

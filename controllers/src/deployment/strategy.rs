//! The numbers of a Deployment's strategy.

use k8s_openapi::api::apps::v1::{Deployment, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// How pods are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    RollingUpdate,
    Recreate,
}

/// The strategy; RollingUpdate is the default.
pub fn strategy(deployment: &Deployment) -> Strategy {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    match strategy.and_then(|strategy| strategy.type_.as_deref()) {
        Some("Recreate") => Strategy::Recreate,
        _ => Strategy::RollingUpdate,
    }
}

/// The replicas asked for; one when the field is absent.
pub fn desired(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// How many pods may exist beyond the desired ones during a rolling update.
pub fn max_surge(deployment: &Deployment) -> i32 {
    fence_posts(deployment).map_or(0, |(surge, _)| surge)
}

/// How many of the desired pods may be unavailable during a rolling update; never more than are desired.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    fence_posts(deployment).map_or(0, |(_, unavailable)| unavailable.min(desired(deployment)))
}

/// Surge rounds up, unavailability down; if both come out as zero nothing could ever be replaced, so one pod may be unavailable.
fn fence_posts(deployment: &Deployment) -> Option<(i32, i32)> {
    if strategy(deployment) != Strategy::RollingUpdate {
        return None;
    }
    let parameters: Option<&RollingUpdateDeployment> =
        deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref()).and_then(|strategy| strategy.rolling_update.as_ref());
    let replicas = desired(deployment);
    let quarter = IntOrString::String("25%".into());
    let surge = scaled(parameters.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&quarter), replicas, Rounding::Up);
    let unavailable =
        scaled(parameters.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&quarter), replicas, Rounding::Down);
    Some(if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) })
}

#[derive(Clone, Copy)]
enum Rounding {
    Up,
    Down,
}

/// A number as it is, or a percentage of `total`. What validation would refuse counts as zero.
fn scaled(value: &IntOrString, total: i32, rounding: Rounding) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|number| number.parse().ok()).unwrap_or(0);
            let hundredfold = percent.max(0).saturating_mul(i64::from(total.max(0)));
            let rounded = match rounding {
                Rounding::Up => hundredfold.saturating_add(99) / 100,
                Rounding::Down => hundredfold / 100,
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn fence_posts_round_apart_and_are_never_both_zero() {
        // replicas, maxSurge, maxUnavailable, expected surge, expected unavailable
        let cases = [
            (10, json!("25%"), json!("25%"), 3, 2),
            (4, json!("25%"), json!("25%"), 1, 1),
            (3, Value::Null, Value::Null, 1, 0),
            (1, json!("25%"), json!("25%"), 1, 0),
            (10, json!(0), json!(0), 0, 1),
            (10, json!("0%"), json!("5%"), 0, 1),
            (10, json!(0), json!("30%"), 0, 3),
            (2, json!(5), json!(7), 5, 2),
            (0, json!("25%"), json!("25%"), 0, 0),
            (10, json!("x"), json!("100%"), 0, 10),
        ];
        for (replicas, surge, unavailable, expected_surge, expected_unavailable) in cases {
            let deployment: Deployment =
                serde_json::from_value(json!({"spec": {"replicas": replicas, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
                .unwrap();
            let both = (max_surge(&deployment), max_unavailable(&deployment));
            assert_eq!(both, (expected_surge, expected_unavailable), "{replicas} {surge} {unavailable}");
        }
        let recreate: Deployment = serde_json::from_value(
            json!({"spec": {"replicas": 4, "selector": {}, "template": {}, "strategy": {"type": "Recreate"}}}),
        )
        .unwrap();
        assert_eq!((max_surge(&recreate), max_unavailable(&recreate)), (0, 0));
    }
}

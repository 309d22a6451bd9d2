//! What a publisher sends: nothing of it is lost, and whatever does not fit is refused with its path.

use std::collections::HashSet;

use followthrough_tests::world::{Pair, World};
use followthrough_workers::JOBS;
use serde_json::{Value, json};

use super::cases::{self, Case};

/// Maps whose keys are the publisher's own: any name fits.
const FREE: [&str; 2] = ["payload.values", "payload.key"];

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_comes_out_of_its_type_as_it_went_in() {
    for case in cases::all() {
        let world = case.world(Pair::Embedded).await.expect("the embedded pair is always there");
        let payload = case.envelope(&world)["payload"].clone();
        let entry = JOBS.find(case.kind).expect("a registered kind");
        let job = (entry.decode)(&payload).unwrap_or_else(|invalid| panic!("{}: {invalid:?}", case.name));
        assert_eq!(job.payload(), payload, "{}", case.name);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_a_dead_letter_with_a_path_and_calls_nobody() {
    for case in cases::all() {
        let world = case.world(Pair::Embedded).await.expect("the embedded pair is always there");
        refused(&world, case).await;
        world.close().await;
    }
}

async fn refused(world: &World, case: Case) {
    let good = case.envelope(world);
    let mut mutants = Vec::new();
    mutate(&good["payload"], "payload", &mut |path, mutant| {
        let mut envelope = good.clone();
        envelope["id"] = json!(format!("garbage-{}", mutants.len()));
        *at(&mut envelope, path) = mutant;
        mutants.push((path.to_owned(), envelope));
    });
    assert!(mutants.len() > 5, "{}: only {}", case.name, mutants.len());
    let before = world.states().await;
    let envelopes: Vec<Value> = mutants.iter().map(|(_, envelope)| envelope.clone()).collect();
    world.publish(&envelopes).await;
    world.until("all are refused", || async { world.dead_letters().await.len() == mutants.len() }).await;
    let letters = world.dead_letters().await;
    let refused: HashSet<String> = letters.iter().filter_map(|letter| letter.job_id.clone()).collect();
    assert_eq!(refused.len(), mutants.len());
    for letter in letters {
        let id = letter.job_id.expect("an id");
        let (path, _) = mutants.iter().find(|(_, envelope)| envelope["id"] == id.as_str()).expect("ours");
        let told =
            letter.path.unwrap_or_else(|| panic!("{}: {path}: no path: {}", case.name, letter.message));
        assert!(told.starts_with("payload"), "{}: {path}: {told}", case.name);
        // The place itself, or what is around or inside it.
        assert!(told.starts_with(path) || path.starts_with(&told), "{}: {path} is not {told}", case.name);
        world.expect_dead(&letter.code);
    }
    assert_eq!(world.states().await, before, "{}: no row is made of garbage", case.name);
    assert!(world.sim().calls().is_empty(), "{}: Microsoft was called", case.name);
    // Over HTTP the same refusal comes at once.
    for (path, envelope) in mutants.iter().step_by(7) {
        let (status, answer) = world.submit(envelope).await;
        assert_eq!(status, 400, "{}: {path}: {answer}", case.name);
        assert!(answer["error"]["path"].as_str().is_some_and(|told| told.starts_with("payload")), "{answer}");
    }
}

/// Every way to spoil a payload in one place: an unknown field, and every wrong type.
fn mutate(value: &Value, path: &str, spoil: &mut impl FnMut(&str, Value)) {
    let free = FREE.iter().any(|map| path.starts_with(map));
    match value {
        Value::Object(fields) => {
            if !FREE.contains(&path) {
                spoil(&format!("{path}.zz_unknown"), json!(1));
            }
            spoil(path, json!("an object"));
            spoil(path, fields.values().cloned().collect());
            for (name, field) in fields {
                mutate(field, &format!("{path}.{name}"), spoil);
            }
        }
        Value::Array(items) => {
            spoil(path, json!({"a": "list"}));
            spoil(path, json!("a list"));
            for (index, item) in items.iter().enumerate() {
                mutate(item, &format!("{path}[{index}]"), spoil);
            }
        }
        leaf => {
            spoil(path, json!({"zz": [1]}));
            if !free {
                spoil(path, if leaf.is_string() { json!(7) } else { json!("text") });
                spoil(path, json!([leaf]));
            }
        }
    }
}

/// The place of a path like `payload.to[0].email`, made when it is not there.
fn at<'a>(value: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(value, |value, part| {
        let (name, index) = part.split_once('[').map_or((part, None), |(name, rest)| (name, Some(rest)));
        let field = &mut value[name];
        match index.and_then(|index| index.trim_end_matches(']').parse::<usize>().ok()) {
            Some(index) => &mut field[index],
            None => field,
        }
    })
}

//! Mail that is larger than the answer it comes in may be: it stands in the way of no other.

use followthrough_tests::world::{Pair, World};
use m365_sim::graph::{Fill, NewMessage};

use super::support::{
    SHARED, connect, consented, deliver, filled, in_step, leave, once_each, settled, stored,
};

/// Two of these are more than is read of one answer.
const LARGE: usize = 9 * 1024 * 1024;
/// One of these is.
const TOO_LARGE: usize = 17 * 1024 * 1024;

fn deliver_large(world: &World, size: usize) -> String {
    let body = format!("<p>{}</p>", "x".repeat(size));
    world.sim().deliver(SHARED, NewMessage::new("Nora <nora@customer.example>", "Large", &body))
}

/// Of a large message all is kept, of one that cannot be had whole all but its content.
async fn are_kept(world: &World, large: &[(String, usize)]) {
    let rows = stored(world).await;
    for (id, size) in large {
        let row = rows.iter().find(|row| row.id == *id).expect("in step");
        assert_eq!(row.subject.as_deref(), Some("Large"));
        assert_eq!(row.detail.len() > *size, *size == LARGE, "{} of {size} bytes", row.detail.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_too_large_is_read_in_parts_and_what_is_too_large_by_itself_without_its_content() {
    for pair in [Pair::Embedded, Pair::Servers] {
        let Some(world) = consented(pair).await else { continue };
        world.sim().graph().fill(SHARED, &Fill { messages: 150, folders: 2, ..Fill::default() });
        let deliver_all = || [LARGE, TOO_LARGE, LARGE].map(|size| (deliver_large(&world, size), size));
        let before = deliver_all();
        connect(&world, 31).await;
        filled(&world).await;
        in_step(&world).await;
        are_kept(&world, &before).await;
        settled(&world).await;
        let meanwhile = deliver_all();
        deliver(&world, "After");
        in_step(&world).await;
        are_kept(&world, &meanwhile).await;
        once_each(&world).await;
        leave(&world).await;
        world.close().await;
    }
}

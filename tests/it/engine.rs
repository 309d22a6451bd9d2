//! Stories about the engine: once and only once, whatever happens on the way.

mod cuts;
mod limits;
mod once;
mod people;
mod refusals;

/// Declares each story as a test on both pairs of engines.
macro_rules! on_both_pairs {
    ($($story:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $story() {
                if let Some(world) = followthrough_tests::engine::Engine::open(followthrough_tests::engine::Pair::Embedded).await {
                    super::$story(world).await;
                }
            })+
        }
        mod servers {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $story() {
                if let Some(world) = followthrough_tests::engine::Engine::open(followthrough_tests::engine::Pair::Servers).await {
                    super::$story(world).await;
                }
            })+
        }
    };
}
pub(crate) use on_both_pairs;

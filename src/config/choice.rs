//! A setting that is a word, or a table with that word under `kind` and further keys.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};

/// A table as written, which may be built from the word alone.
pub(super) trait Kind {
    /// Returns the table that the word alone stands for.
    fn of(kind: String) -> Self;
}

/// A `T`, written as a table or as the word of its kind.
#[derive(Debug, Default)]
pub(super) struct Choice<T>(pub(super) T);

impl<'de, T: Deserialize<'de> + Kind> Deserialize<'de> for Choice<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Kind> Visitor<'de> for Read<T> {
            type Value = Choice<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word, or a table such as { kind = \"...\" }")
            }

            fn visit_str<E>(self, word: &str) -> Result<Choice<T>, E> {
                Ok(Choice(T::of(word.to_owned())))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Choice<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Choice)
            }
        }
        deserializer.deserialize_any(Read(PhantomData))
    }
}

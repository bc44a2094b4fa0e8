//! What is written to files: words of eight bytes that tell which file they belong to, where in it, and which write it
//! was. So every byte that is read or reaches the LUN tells where it comes from (invariant 8).

/// A word: file, place in the file, version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word(pub u64);

impl Word {
    /// The `version`th write to a place.
    pub fn new(file: u16, place: u16, version: u32) -> Self {
        Self(u64::from(file) << 48 | u64::from(place) << 32 | u64::from(version))
    }

    /// Nothing was written there, or it was cut off.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whose it is.
    pub fn file(self) -> u16 {
        u16::try_from(self.0 >> 48).expect("16 bits")
    }

    /// Whether it was written to a place of a file.
    pub fn is_at(self, file: u16, place: u16) -> bool {
        self.0 >> 32 == u64::from(file) << 16 | u64::from(place)
    }

    /// Its bytes.
    pub fn bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
}

/// The words of a piece of a file.
pub fn words_of(data: &[u8]) -> impl Iterator<Item = Word> {
    data.chunks_exact(8).map(|word| Word(u64::from_le_bytes(word.try_into().expect("eight bytes"))))
}

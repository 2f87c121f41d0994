//! A few things by number.
//!
//! Must hold: who adds one bounds how many there are, by a small number. A map for each such type would be a twentieth of this program.

/// Things that are looked for one by one.
#[derive(Debug)]
pub struct Few<T>(Vec<(u32, T)>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few(Vec::new())
    }
}

impl<T> Few<T> {
    /// The one with this number.
    pub fn of(&self, number: u32) -> Option<&T> {
        self.0.iter().find(|(known, _)| *known == number).map(|(_, one)| one)
    }

    /// The same, to change it.
    pub fn of_mut(&mut self, number: u32) -> Option<&mut T> {
        self.0.iter_mut().find(|(known, _)| *known == number).map(|(_, one)| one)
    }

    /// One more, with a number that none of them has.
    pub fn add(&mut self, number: u32, one: T) {
        self.0.push((number, one));
    }

    /// Takes one out.
    pub fn remove(&mut self, number: u32) -> Option<T> {
        let place = self.0.iter().position(|(known, _)| *known == number)?;
        Some(self.0.remove(place).1)
    }

    /// Each with its number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.0.iter().map(|(number, one)| (*number, one))
    }

    /// Keeps those of which this is so.
    pub fn retain(&mut self, keep: impl Fn(u32, &T) -> bool) {
        self.0.retain(|(number, one)| keep(*number, one));
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

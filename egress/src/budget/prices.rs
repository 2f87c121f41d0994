//! What tokens cost, in integers: micro-dollars, rounded up.

use abi::control::Spent;
use abi::network::Price;

/// A price is for so many tokens.
const PRICED_TOKENS: u128 = 1_000_000;

/// Tokens of a call, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Read by the model, from no cache.
    pub input: u64,
    pub cache_read: u64,
    pub cache_write: u64,
    pub output: u64,
}

impl Tokens {
    /// The tokens as amounts of a budget, with what they cost; without a price they cost nothing that is known.
    pub fn spent(&self, price: Option<&Price>) -> Spent {
        Spent {
            input_tokens: self.input,
            cache_tokens: self.cache_read.saturating_add(self.cache_write),
            output_tokens: self.output,
            micro_dollars: price.map_or(0, |price| self.cost(price)),
            ..Spent::default()
        }
    }

    fn cost(&self, price: &Price) -> u64 {
        rounded_up(&[
            (self.input, price.input),
            (self.cache_read, price.cache_read),
            (self.cache_write, price.cache_write),
            (self.output, price.output),
        ])
    }
}

/// The most that a call can cost whose input tokens may each be read fresh, from the cache or into it.
pub fn worst(price: &Price, input: u64, output: u64) -> u64 {
    let dearest = price.input.max(price.cache_read).max(price.cache_write);
    rounded_up(&[(input, dearest), (output, price.output)])
}

/// Rounded once, so that parts never cost more than their whole.
fn rounded_up(amounts: &[(u64, u64)]) -> u64 {
    // Each product is below 2^128 and so is the sum of a few of them after saturation.
    let sum = amounts
        .iter()
        .map(|(tokens, price)| u128::from(*tokens) * u128::from(*price))
        .fold(0u128, u128::saturating_add);
    u64::try_from(sum.div_ceil(PRICED_TOKENS)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::limits;
    use proptest::prelude::*;

    fn price(input: u64, cache_read: u64, cache_write: u64, output: u64) -> Price {
        Price { input, cache_read, cache_write, output, input_tokens_max: 200_000, output_tokens_max: 8_000 }
    }

    #[test]
    fn money_is_exact_and_rounded_up_once() {
        let price = price(2_500_000, 1_250_000, 3_125_000, 10_000_000);
        let cost = |input, cache_read, cache_write, output| {
            Tokens { input, cache_read, cache_write, output }.spent(Some(&price)).micro_dollars
        };
        assert_eq!(cost(0, 0, 0, 0), 0);
        assert_eq!(cost(1, 0, 0, 0), 3);
        assert_eq!(cost(2, 0, 0, 0), 5);
        assert_eq!(cost(1, 1, 1, 1), 17);
        assert_eq!(cost(1_000_000, 0, 0, 0), 2_500_000);
        let largest =
            Tokens { input: u64::MAX, cache_read: u64::MAX, cache_write: u64::MAX, output: u64::MAX };
        assert_eq!(largest.spent(Some(&price)).micro_dollars, u64::MAX);
        assert_eq!(largest.spent(None).micro_dollars, 0);
    }

    proptest! {
        #[test]
        fn the_worst_case_covers_every_split_of_the_input(
            parts in prop::array::uniform3(0..limits::CALL_TOKENS_MAX / 3),
            output in 0..limits::CALL_TOKENS_MAX,
            prices in prop::array::uniform4(0..=limits::PRICE_MAX),
        ) {
            let price = price(prices[0], prices[1], prices[2], prices[3]);
            let used = Tokens { input: parts[0], cache_read: parts[1], cache_write: parts[2], output };
            let most = worst(&price, parts.iter().sum(), output);
            prop_assert!(used.spent(Some(&price)).micro_dollars <= most);
            prop_assert!(most < u64::MAX);
        }
    }
}

//! The conversation, kept within its bound: results go first, the oldest before the newer, then whole rounds. The goal stays.
//!
//! Must hold: each call that is sent has its result, whatever was left out.

use crate::model::{Answer, Message, ToolResult};
use crate::shown::shortened;

/// Results longer than this are worth leaving out.
const WORTH_BYTES: usize = 200;

/// What was said so far, the goal first.
#[derive(Debug)]
pub struct Conversation {
    messages: Vec<Message>,
    bytes_max: usize,
}

impl Conversation {
    /// One that begins with the goal.
    pub fn new(goal: String, bytes_max: usize) -> Conversation {
        Conversation { messages: vec![Message::User(goal)], bytes_max }
    }

    /// What is sent.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Adds a message and makes room for it.
    pub fn add(&mut self, message: Message) {
        self.messages.push(message);
        while self.bytes() > self.bytes_max && self.make_room() {}
    }

    fn bytes(&self) -> usize {
        self.messages.iter().map(bytes).sum()
    }

    /// Leaves out what is missed least. False: there is nothing more.
    fn make_room(&mut self) -> bool {
        let newest = self.messages.len() - 1;
        if self.messages.iter_mut().take(newest).any(leave_out_results) {
            return true;
        }
        // The oldest round after the goal: an answer and what followed it, but never the last one.
        let mut answers =
            (1..self.messages.len()).filter(|at| matches!(self.messages[*at], Message::Model(_)));
        if let (Some(first), Some(second)) = (answers.next(), answers.next()) {
            self.messages.drain(first..second);
            return true;
        }
        self.shorten_newest()
    }

    /// One answer with many long results: each gets its share.
    fn shorten_newest(&mut self) -> bool {
        let bytes_max = self.bytes_max;
        let Some(Message::Results(results)) = self.messages.last_mut() else { return false };
        let share = bytes_max / 2 / results.len().max(1);
        let long = results.iter_mut().filter(|result| result.text.len() > share.max(WORTH_BYTES));
        long.map(|result| result.text = shortened(&result.text, share.max(WORTH_BYTES))).count() > 0
    }
}

/// Texts of a message, and what stands around them.
fn bytes(message: &Message) -> usize {
    let texts = match message {
        Message::User(text) => text.len(),
        Message::Model(Answer { text, calls, .. }) => {
            text.len()
                + calls
                    .iter()
                    .map(|call| call.id.len() + call.name.len() + call.arguments.len() + 100)
                    .sum::<usize>()
        }
        Message::Results(results) => {
            results.iter().map(|result| result.id.len() + result.text.len() + 100).sum()
        }
    };
    texts + 50
}

fn leave_out_results(message: &mut Message) -> bool {
    let Message::Results(results) = message else { return false };
    let long = |result: &&mut ToolResult| result.text.len() > WORTH_BYTES;
    let left_out = results.iter_mut().filter(long).map(|result| {
        result.text = format!(
            "[{} bytes of an older result are left out; make the call again if they are needed]",
            result.text.len()
        );
    });
    left_out.count() > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ToolCall;
    use proptest::prelude::*;

    fn round(conversation: &mut Conversation, number: usize, calls: usize, bytes: usize) {
        let id = |call: usize| format!("c{number}-{call}");
        let made = (0..calls)
            .map(|call| ToolCall { id: id(call), name: "read".into(), arguments: "{}".into() })
            .collect();
        conversation.add(Message::Model(Answer { text: "t".into(), calls: made, ..Answer::default() }));
        let results = (0..calls)
            .map(|call| ToolResult { id: id(call), text: "x".repeat(bytes), is_error: false })
            .collect();
        conversation.add(if calls == 0 { Message::User("go on".into()) } else { Message::Results(results) });
    }

    #[test]
    fn the_oldest_results_go_first_and_the_newest_stay_whole() {
        let mut conversation = Conversation::new("goal".into(), 3000);
        (0..4).for_each(|number| round(&mut conversation, number, 1, 900));
        let texts: Vec<usize> = conversation
            .messages()
            .iter()
            .filter_map(|message| match message {
                Message::Results(results) => Some(results[0].text.len()),
                _ => None,
            })
            .collect();
        assert!(texts[0] < 100 && texts[3] == 900, "{texts:?}");
    }

    proptest! {
        #[test]
        fn whatever_is_said_it_stays_within_its_bound_and_every_call_has_its_result(
            rounds in proptest::collection::vec((0..6usize, 0..9000usize), 1..40),
        ) {
            let bound = 32 * 1024;
            let mut conversation = Conversation::new("the goal".into(), bound);
            for (number, (calls, bytes)) in rounds.iter().enumerate() {
                round(&mut conversation, number, *calls, *bytes);
                prop_assert!(conversation.bytes() <= bound, "{}", conversation.bytes());
                let messages = conversation.messages();
                prop_assert_eq!(&messages[0], &Message::User("the goal".into()));
                for pair in messages.windows(2) {
                    if let Message::Model(answer) = &pair[0] && !answer.calls.is_empty() {
                        let Message::Results(results) = &pair[1] else { panic!("no results") };
                        let asked: Vec<_> = answer.calls.iter().map(|call| &call.id).collect();
                        prop_assert_eq!(asked, results.iter().map(|result| &result.id).collect::<Vec<_>>());
                    }
                    prop_assert!(!matches!(pair, [Message::User(_), Message::Results(_)]));
                }
            }
        }
    }
}

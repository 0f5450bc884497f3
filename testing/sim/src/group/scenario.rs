//! What happens to a group of managers, and when: drawn from a seed.

use skep_kit::Dice;

/// One thing that happens. Managers are named by their place among those that are there; one that is not makes it do nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The power of a machine goes after so many steps of its disk, and comes back.
    Power {
        manager: u64,
        steps: u64,
        down: u64,
    },
    /// The power of all goes at once.
    PowerOfAll {
        down: u64,
    },
    /// The process dies; its machine goes on, and has what was written.
    Kill {
        manager: u64,
        down: u64,
    },
    /// While it is down, one bit of what a manager has on its disk changes.
    Flip {
        manager: u64,
        place: u64,
        down: u64,
    },
    /// Nothing gets from the one to the other.
    Cut {
        from: u64,
        to: u64,
        millis: u64,
    },
    /// A manager is not heard by any other, or hears none, or both.
    Isolate {
        manager: u64,
        deaf: bool,
        mute: bool,
        millis: u64,
    },
    /// Of a hundred messages so many are lost, and so many come late.
    Weather {
        loss: u64,
        late: u64,
        millis: u64,
    },
    /// Writes take up to so many milliseconds.
    Slow {
        manager: u64,
        most: u64,
        millis: u64,
    },
    HandOver,
    Snapshot {
        manager: u64,
    },
    /// A machine that is new joins.
    Add,
    /// The manager is taken out of the group, and goes on running for a while.
    Remove {
        manager: u64,
    },
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    pub seed: u64,
    pub managers: u64,
    pub clients: u64,
    /// With the milliseconds since the group was complete.
    pub ops: Vec<(u64, Op)>,
    /// When faults stop.
    pub length: u64,
    /// Entries between snapshots.
    pub snapshot_entries: u64,
    /// Steps of the first manager's disk after which the power goes while the group is made.
    pub early: Option<u64>,
}

impl Scenario {
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut dice = Dice::of_seed(seed ^ 0x6772_6f75_7000);
        let managers = dice.one_of([1, 3, 3, 3, 5]);
        let length = 4_000 + dice.roll(12_000);
        let members = dice.roll(3) == 0;
        let mut ops = Vec::new();
        let mut at = 0;
        // Some runs are calm, so that rare things are seen alone; some are not.
        let pause = dice.one_of([200, 700, 2_000]);
        while at < length {
            at += 50 + dice.roll(pause);
            let manager = dice.roll(5);
            let millis = 300 + dice.roll(4_000);
            let down = dice.one_of([10, 300, 2_000, 5_000]);
            let op = match dice.roll(if members { 22 } else { 17 }) {
                0..5 => Op::Power { manager, steps: dice.roll(60), down },
                5 => Op::PowerOfAll { down },
                6 => Op::Kill { manager, down },
                7 => Op::Flip { manager, place: dice.roll(u64::MAX - 1), down },
                8 | 9 => Op::Cut { from: manager, to: dice.roll(5), millis },
                10 | 11 => Op::Isolate { manager, deaf: dice.coin(), mute: dice.coin(), millis },
                12 => Op::Weather { loss: dice.roll(40), late: dice.roll(30), millis },
                13 => Op::Slow { manager, most: dice.one_of([20, 200, 1_500]), millis },
                14 => Op::HandOver,
                15 | 16 => Op::Snapshot { manager },
                17..20 => Op::Add,
                _ => Op::Remove { manager },
            };
            ops.push((at, op));
        }
        Self {
            seed,
            managers,
            clients: 1 + dice.roll(4),
            ops,
            length,
            snapshot_entries: dice.one_of([5, 20, 100]),
            early: (dice.roll(4) == 0).then(|| dice.roll(60)),
        }
    }
}

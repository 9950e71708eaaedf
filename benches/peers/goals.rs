//! What was promised, what was measured, and whether that is the same.

use crate::results::{Results, Run, ScenarioName};
use crate::scenario::{OURS, crowd, floor, idle, peers, scale};
use crate::server::{Durability, Runtime, Server};
use crate::stats::{Series, Summary};
use crate::table::{Table, left_aligned, number, with_range};

/// One promise.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) bound: Bound,
    /// `None`: not measured.
    pub(crate) measured: Option<Summary>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
    Between(f64, f64),
    /// Nothing was promised; it stands beside what was.
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Met,
    NotMet,
    NotMeasured,
    NoGoal,
}

impl Goal {
    /// By the median.
    pub(crate) fn verdict(&self) -> Verdict {
        let Some(Summary { median, .. }) = self.measured else { return Verdict::NotMeasured };
        let is_met = match self.bound {
            Bound::AtMost(most) => median <= most,
            Bound::AtLeast(least) => median >= least,
            Bound::Between(least, most) => (least..=most).contains(&median),
            Bound::None => return Verdict::NoGoal,
        };
        if is_met { Verdict::Met } else { Verdict::NotMet }
    }
}

/// Those about scenarios that were measured, in the order of the report.
pub(crate) fn goals(results: &Results) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut add = |scenario, about: fn(&Results) -> Vec<Goal>| {
        if results.has(scenario) {
            goals.append(&mut about(results));
        }
    };
    add(ScenarioName::Floor, floor_goals);
    add(ScenarioName::Peers, peer_goals);
    add(ScenarioName::Scale, scale_goals);
    add(ScenarioName::Crowd, crowd_goals);
    add(ScenarioName::Floor, runtime_goals);
    add(ScenarioName::Idle, idle_goals);
    goals
}

/// As a table.
pub(crate) fn table(goals: &[Goal]) -> String {
    let mut table = Table::new(&["what", "goal", "measured", ""]);
    for goal in goals {
        let bound = match goal.bound {
            Bound::AtMost(most) => format!("≤ {}", number_plain(most)),
            Bound::AtLeast(least) => format!("≥ {}", number_plain(least)),
            Bound::Between(least, most) => {
                format!("{} to {}", number_plain(least), number_plain(most))
            }
            Bound::None => String::new(),
        };
        let verdict = match goal.verdict() {
            Verdict::Met => "met",
            Verdict::NotMet => "**not met**",
            Verdict::NotMeasured => "not measured",
            Verdict::NoGoal => "",
        };
        table.row([goal.what.clone(), bound, with_range(goal.measured), verdict.to_owned()]);
    }
    left_aligned(&table)
}

/// A bound is written as it was set: "1.5", "8,000".
fn number_plain(value: f64) -> String {
    if value >= 1000.0 { number(value) } else { value.to_string() }
}

fn floor_goals(results: &Results) -> Vec<Goal> {
    let cpu = |server: Server| results.cpu(ScenarioName::Floor, floor::LARGE, server.name());
    let mut goals = Vec::new();
    for server in ours() {
        let Some(probe) = floor::floor_of(server) else { continue };
        let bound = match server {
            Server::Ours { durability: Durability::Written, .. } => Bound::AtMost(1.5),
            _ => Bound::AtMost(1.6),
        };
        goals.push(ratio(
            format!("CPU per GiB, {} against {}", server.name(), probe.name()),
            bound,
            &cpu(server),
            &cpu(probe),
        ));
        let beside = format!("CPU per GiB, {} against {}", server.name(), Server::Ring.name());
        goals.push(ratio(beside, Bound::None, &cpu(server), &cpu(Server::Ring)));
    }
    goals
}

fn ours() -> impl Iterator<Item = Server> {
    let durabilities = [Durability::Written, Durability::Synced];
    [Runtime::Monoio, Runtime::TokioUring].into_iter().flat_map(move |runtime| {
        durabilities.map(|durability| Server::Ours { runtime, durability })
    })
}

fn peer_goals(results: &Results) -> Vec<Goal> {
    let cpu = |server: Server| results.cpu(ScenarioName::Peers, peers::WARM, server.name());
    let peers = [
        (Server::Naive, 3.0),
        (Server::Nginx256k, 3.0),
        (Server::NodeWs, 5.0),
        (Server::TusNode, 5.0),
        (Server::Copyparty, 5.0),
        (Server::Rustus, 5.0),
    ];
    let mut goals = Vec::new();
    for (peer, least) in peers {
        for ours in [peers::WRITTEN, OURS] {
            let what =
                format!("CPU per GiB, warm page cache, {} against {}", peer.name(), ours.name());
            goals.push(ratio(what, Bound::AtLeast(least), &cpu(peer), &cpu(ours)));
        }
    }
    goals
}

fn scale_goals(results: &Results) -> Vec<Goal> {
    let cpu = |variant: &str| results.cpu(ScenarioName::Scale, variant, OURS.name());
    let against = |variant: &str, base: &str, bound| {
        let what = format!("CPU per GiB, {variant} against {base}");
        ratio(what, bound, &cpu(variant), &cpu(base))
    };
    // File creation and hand-over apart.
    let moving = |variant: &str, base: &str, bound| {
        let what = format!("CPU per GiB while bytes move, {variant} against {base}");
        let [variant, base] = [variant, base].map(|it| scale::transfer_cpu(results, it));
        ratio(what, bound, &variant, &base)
    };
    let flat = Bound::Between(0.75, 1.25);
    vec![
        against(scale::LENGTHS[1], scale::LENGTHS[0], flat),
        against(scale::LENGTHS[2], scale::LENGTHS[0], flat),
        moving(scale::ACTIVE[1], scale::ACTIVE[0], Bound::None),
        moving(scale::ACTIVE[2], scale::ACTIVE[0], Bound::AtMost(1.5)),
        against(scale::CUT_FRAMES, scale::WHOLE_FRAMES, Bound::AtMost(1.1)),
    ]
}

fn crowd_goals(results: &Results) -> Vec<Goal> {
    let series = |variant, figure: fn(&Run) -> f64| {
        results.series(ScenarioName::Crowd, variant, OURS.name(), figure)
    };
    let goal = |what: &str, bound, variant, figure: fn(&Run) -> f64| Goal {
        what: format!("{what}, {variant}"),
        bound,
        measured: series(variant, figure).summary(),
    };
    let right: fn(&Run) -> f64 = |it| it.verified_count as f64 / f64::from(it.file_count);
    let fairness: fn(&Run) -> f64 = |it| it.fairness;
    let memory = Bound::AtMost(CONNECTION_BYTES_MAX);
    let rate = |variant| series(variant, Run::transfer_gib_per_s);
    let cpu = |variant| series(variant, Run::cpu_s_per_gib);
    let among = format!("{} against {}", crowd::AMONG, crowd::ALONE);
    vec![
        goal(
            "part of the files that are right, bit by bit",
            Bound::AtLeast(1.0),
            crowd::UPLOADS,
            right,
        ),
        goal("Jain's fairness", Bound::AtLeast(0.95), crowd::UPLOADS, fairness),
        goal(
            "memory beyond the pools per connection, B",
            memory,
            crowd::UPLOADS,
            Run::bytes_beyond_pools,
        ),
        goal(
            "memory of a connection that has sent nothing, B",
            Bound::None,
            crowd::AMONG,
            Run::bytes_connected,
        ),
        ratio(
            format!("rate, {among}"),
            Bound::AtLeast(0.9),
            &rate(crowd::AMONG),
            &rate(crowd::ALONE),
        ),
        ratio(format!("CPU per GiB, {among}"), Bound::None, &cpu(crowd::AMONG), &cpu(crowd::ALONE)),
    ]
}

fn runtime_goals(results: &Results) -> Vec<Goal> {
    let cpu = |server: Server| results.cpu(ScenarioName::Floor, floor::LARGE, server.name());
    let goals = [Durability::Written, Durability::Synced].map(|durability| {
        let [tokio, monoio] = [Runtime::TokioUring, Runtime::Monoio]
            .map(|runtime| Server::Ours { runtime, durability });
        let what = format!("CPU per GiB, {} against {}", tokio.name(), monoio.name());
        ratio(what, Bound::Between(0.85, 1.15), &cpu(tokio), &cpu(monoio))
    });
    goals.into()
}

fn idle_goals(results: &Results) -> Vec<Goal> {
    let goals = idle::servers().map(|server| {
        let runs = results.idle.iter().filter(|it| it.server == server.name());
        Goal {
            what: format!("wake-ups of an idle server, {}", server.name()),
            bound: Bound::AtMost(0.0),
            measured: Summary::of(runs.map(|it| it.wakeup_count() as f64)),
        }
    });
    goals.into()
}

fn ratio(what: String, bound: Bound, of: &Series, base: &Series) -> Goal {
    Goal { what, bound, measured: of.ratio_to(base).summary() }
}

/// 8 KB.
const CONNECTION_BYTES_MAX: f64 = 8000.0;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::results::IdleRun;
    use crate::results::tests::{results, run};

    /// A measurement in which everything is well, and no ratio is 1.
    pub(crate) fn good_results() -> Results {
        let mut results = results();
        for round in 0..=3 {
            let drift = 1.0 + f64::from(round) / 10.0;
            let mut add = |scenario, variant: &str, server: Server, cpu_s: f64| {
                results.runs.push(run(scenario, variant, server.name(), round, cpu_s * drift));
            };
            for variant in [floor::LARGE, floor::ORIGINAL] {
                add(ScenarioName::Floor, variant, Server::Ring, 0.14);
                for (runtime, factor) in [(Runtime::Monoio, 1.0), (Runtime::TokioUring, 1.1)] {
                    add(ScenarioName::Floor, variant, Server::Floor { runtime }, 0.15 * factor);
                    for (durability, cpu_s) in
                        [(Durability::Written, 0.21), (Durability::Synced, 0.225)]
                    {
                        let server = Server::Ours { runtime, durability };
                        add(ScenarioName::Floor, variant, server, cpu_s * factor);
                    }
                }
            }
            for (server, cpu_s) in [
                (OURS, 0.22),
                (peers::WRITTEN, 0.2),
                (Server::Naive, 0.7),
                (Server::Nginx256k, 0.8),
                (Server::NodeWs, 1.5),
                (Server::TusNode, 2.5),
                (Server::Copyparty, 1.2),
                (Server::Rustus, 1.4),
            ] {
                add(ScenarioName::Peers, peers::WARM, server, cpu_s);
            }
            for (variant, cpu_s) in [
                (scale::LENGTHS[0], 0.2),
                (scale::LENGTHS[1], 0.21),
                (scale::LENGTHS[2], 0.19),
                (scale::ACTIVE[0], 0.2),
                (scale::ACTIVE[1], 0.22),
                (scale::ACTIVE[2], 0.28),
                (scale::WHOLE_FRAMES, 0.2),
                (scale::CUT_FRAMES, 0.21),
            ] {
                add(ScenarioName::Scale, variant, OURS, cpu_s);
            }
            for variant in [crowd::UPLOADS, crowd::ALONE, crowd::AMONG] {
                add(ScenarioName::Crowd, variant, OURS, 0.3);
            }
        }
        for server in idle::servers() {
            results.idle.push(IdleRun {
                server: server.name().to_owned(),
                watched_s: 10.0,
                thread_count: 3,
                context_switch_count: 0,
                system_calls: Vec::new(),
            });
        }
        results
    }

    fn failed(results: &Results) -> Vec<String> {
        let goals = goals(results).into_iter().filter(|it| it.verdict() == Verdict::NotMet);
        goals.map(|it| it.what).collect()
    }

    #[test]
    fn good_figures_meet_every_goal() {
        let goals = goals(&good_results());
        assert_eq!(failed(&good_results()), Vec::<String>::new());
        let met = goals.iter().filter(|it| it.verdict() == Verdict::Met).count();
        // 4 against the floor, 12 beside peers, 4 of scale, 4 of crowds, 2 of runtimes, 2 idle.
        assert_eq!(met, 28);
        assert!(goals.iter().all(|it| it.verdict() != Verdict::NotMeasured));
    }

    #[test]
    fn nothing_measured_meets_nothing() {
        assert_eq!(goals(&results()), []);
        let mut results = good_results();
        results.runs.retain(|it| it.scenario == ScenarioName::Peers && it.server != "rustus");
        results.idle.clear();
        let goals = goals(&results);
        let open = goals.iter().filter(|it| it.verdict() == Verdict::NotMeasured);
        assert_eq!((goals.len(), open.count()), (12, 2), "{goals:?}");
    }

    /// Makes one thing worse at a time; the goal about it, and no other, is missed.
    #[test]
    fn each_goal_can_be_missed() {
        let worse = |change: &dyn Fn(&mut Run) -> bool| {
            let mut results = good_results();
            let changed = results.runs.iter_mut().filter_map(|it| change(it).then_some(()));
            assert!(changed.count() > 0, "nothing was changed");
            failed(&results)
        };
        let cost = |scenario, variant: &'static str, server: &'static str, factor: f64| {
            worse(&move |it: &mut Run| {
                let is_it = it.scenario == scenario && it.variant == variant && it.server == server;
                if is_it {
                    it.transfer.process_ns = (it.transfer.process_ns as f64 * factor) as u64;
                }
                is_it
            })
        };
        let tokio = |durability| Server::Ours { runtime: Runtime::TokioUring, durability }.name();
        let written = cost(ScenarioName::Floor, floor::LARGE, peers::WRITTEN.name(), 1.12);
        assert_eq!(written, ["CPU per GiB, ours-monoio-written against floor-monoio"]);
        let synced = cost(ScenarioName::Floor, floor::LARGE, OURS.name(), 1.12);
        assert_eq!(synced, ["CPU per GiB, ours-monoio-synced against floor-monoio"]);
        let slower = cost(ScenarioName::Floor, floor::LARGE, tokio(Durability::Written), 1.07);
        assert_eq!(slower.len(), 1, "{slower:?}");
        let peer = cost(ScenarioName::Peers, peers::WARM, "naive", 0.85);
        assert_eq!(peer, ["CPU per GiB, warm page cache, naive against ours-monoio-synced"]);
        let longer = cost(ScenarioName::Scale, scale::LENGTHS[2], OURS.name(), 0.6);
        assert_eq!(longer, ["CPU per GiB, 20 times as long against one file"]);
        let more = cost(ScenarioName::Scale, scale::ACTIVE[2], OURS.name(), 1.2);
        assert_eq!(more, ["CPU per GiB while bytes move, 1,000 active against 16 active"]);
        let cut = cost(ScenarioName::Scale, scale::CUT_FRAMES, OURS.name(), 1.1);
        assert_eq!(cut, ["CPU per GiB, 131,000 B frames against whole frames"]);

        let in_crowd = |variant: &'static str, change: fn(&mut Run)| {
            worse(&move |it: &mut Run| {
                let is_it = it.scenario == ScenarioName::Crowd && it.variant == variant;
                if is_it {
                    change(it);
                }
                is_it
            })
        };
        let unfair = in_crowd(crowd::UPLOADS, |it| it.fairness = 0.94);
        assert_eq!(unfair, ["Jain's fairness, 1,000 uploads"]);
        let wrong = in_crowd(crowd::UPLOADS, |it| it.verified_count -= 1);
        assert_eq!(wrong, ["part of the files that are right, bit by bit, 1,000 uploads"]);
        let large = in_crowd(crowd::UPLOADS, |it| {
            it.memory.end.bytes = 8001 * u64::from(it.connection_count);
        });
        assert_eq!(large, ["memory beyond the pools per connection, B, 1,000 uploads"]);
        let slow = in_crowd(crowd::AMONG, |it| it.transfer.wall_ns = 1_200_000_000);
        assert_eq!(slow, ["rate, active ones among idle connections against active ones alone"]);
        let mut awake = good_results();
        awake.idle[1].context_switch_count = 1;
        assert_eq!(failed(&awake), ["wake-ups of an idle server, ours-tokio-uring-synced"]);
    }

    #[test]
    fn table_names_goal_figure_and_verdict() {
        let summary = Summary::of([1.2, 1.3, 1.7]);
        let goal = |bound| Goal { what: "ratio".to_owned(), bound, measured: summary };
        let open = Goal { measured: None, ..goal(Bound::AtMost(1.0)) };
        let text = table(&[
            goal(Bound::AtMost(1.5)),
            goal(Bound::AtLeast(3.0)),
            goal(Bound::Between(0.85, 1.15)),
            goal(Bound::None),
            open,
        ]);
        let rows = [
            "| ratio | ≤ 1.5 | 1.30 (1.20 to 1.70) | met |",
            "| ratio | ≥ 3 | 1.30 (1.20 to 1.70) | **not met** |",
            "| ratio | 0.85 to 1.15 | 1.30 (1.20 to 1.70) | **not met** |",
            "| ratio |  | 1.30 (1.20 to 1.70) |  |",
            "| ratio | ≤ 1 | – | not measured |",
        ];
        assert_eq!(text.lines().skip(2).collect::<Vec<_>>(), rows);
    }
}

//! Two ranks equal one, whatever the network does; and which sums are under way while a sub-block computes.

use crate::{LAYERS, VOCABULARY, fresh, ids, ladder, logits, model, shape, worst};
use ounce_model::{
    Model, ModelConfig, Residual,
    config::ModelShape,
    weights::{FreshWeights, Weights},
};
use ounce_tensor::{Collective, Compute, Pending, Tensor, no_grad, ops};
use serde_json::{Value, json};
use std::{
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

/// What ranks exchange: sum number, and the partial of each rank that has arrived.
#[derive(Default)]
struct Table {
    sums: Vec<Vec<Option<Vec<f32>>>>,
}

struct Ranks {
    size: usize,
    table: Mutex<Table>,
    arrived: Condvar,
}

/// One rank of a group of threads. Each sum travels on a thread of its own, after a delay, as on a network.
struct Rank {
    number: usize,
    group: Arc<Ranks>,
    started: Mutex<usize>,
    /// `(started, number)` and `(awaited, number)`, in order.
    log: Arc<Mutex<Vec<(bool, usize)>>>,
    delay: fn(usize, usize) -> u64,
}

struct Sum {
    number: usize,
    shape: Vec<usize>,
    group: Arc<Ranks>,
    log: Arc<Mutex<Vec<(bool, usize)>>>,
    sender: std::thread::JoinHandle<()>,
}

impl Pending for Sum {
    fn wait(self: Box<Self>) -> ounce_tensor::Result<Tensor> {
        self.log.lock().unwrap().push((false, self.number));
        self.sender.join().unwrap();
        let mut table = self.group.table.lock().unwrap();
        while table.sums[self.number].iter().any(Option::is_none) {
            table = self.group.arrived.wait(table).unwrap();
        }
        // In the order of ranks, so that all ranks get the same bits.
        let mut total = vec![0f32; self.shape.iter().product()];
        for part in table.sums[self.number].iter().flatten() {
            for (t, p) in total.iter_mut().zip(part) {
                *t += p;
            }
        }
        Tensor::new(total, &self.shape)
    }
}

impl Collective for Rank {
    fn rank(&self) -> usize {
        self.number
    }
    fn size(&self) -> usize {
        self.group.size
    }
    fn start_sum(&self, partial: Tensor) -> ounce_tensor::Result<Box<dyn Pending>> {
        let mut started = self.started.lock().unwrap();
        let number = *started;
        *started += 1;
        self.log.lock().unwrap().push((true, number));
        let (group, rank, values) = (self.group.clone(), self.number, partial.to_f32());
        let pause = Duration::from_micros((self.delay)(rank, number));
        let sender = std::thread::spawn(move || {
            std::thread::sleep(pause);
            let mut table = group.table.lock().unwrap();
            while table.sums.len() <= number {
                table.sums.push(vec![None; group.size]);
            }
            table.sums[number][rank] = Some(values);
            group.arrived.notify_all();
        });
        Ok(Box::new(Sum {
            number,
            shape: partial.shape().to_vec(),
            group: self.group.clone(),
            log: self.log.clone(),
            sender,
        }))
    }
}

/// A rank's part of fresh weights: rows of q, k, v, gate and up; columns of o and down; everything else whole.
struct Shard {
    inner: FreshWeights,
    rank: usize,
    size: usize,
}

impl Weights for Shard {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ounce_model::Result<Tensor> {
        let rows = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"];
        let columns = ["o_proj", "down_proj"];
        let (rank, size) = (self.rank, self.size);
        if rows.iter().any(|part| name.contains(part)) {
            let whole = self.inner.tensor(name, &[shape[0] * size, shape[1]])?;
            return Ok(ops::narrow_rows(&whole, rank * shape[0], (rank + 1) * shape[0])?);
        }
        if columns.iter().any(|part| name.contains(part)) {
            let width = shape[1] * size;
            let whole = self.inner.tensor(name, &[shape[0], width])?.to_f32();
            let part = whole
                .chunks_exact(width)
                .flat_map(|row| row[rank * shape[1]..(rank + 1) * shape[1]].to_vec())
                .collect();
            return Ok(Tensor::new(part, shape)?);
        }
        self.inner.tensor(name, shape)
    }
}

/// Greedy ids and the last logits of one rank, and what its collective was asked for in its first forward.
type Ran = (Vec<u32>, Vec<f32>, Vec<(bool, usize)>);

fn run_ranks(shape: &ModelShape, size: usize, prompt: &[u32], new: usize, delay: fn(usize, usize) -> u64) -> Vec<Ran> {
    let group = Arc::new(Ranks {
        size,
        table: Mutex::new(Table::default()),
        arrived: Condvar::new(),
    });
    let mut json = shape.to_json(VOCABULARY, None, None);
    json["head_dim"] = json!(6);
    for key in ["num_attention_heads", "num_key_value_heads", "intermediate_size"] {
        json[key] = json!(json[key].as_u64().unwrap() as usize / size);
    }
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..size)
            .map(|rank| {
                let (group, json) = (group.clone(), json.clone());
                scope.spawn(move || run_rank(rank, group, &json, prompt, new, delay))
            })
            .collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    })
}

fn run_rank(
    rank: usize,
    group: Arc<Ranks>,
    json: &Value,
    prompt: &[u32],
    new: usize,
    delay: fn(usize, usize) -> u64,
) -> Ran {
    let config = ModelConfig::parse("test", json).unwrap();
    let size = group.size;
    let weights = &mut Shard {
        inner: fresh(),
        rank,
        size,
    };
    let model = Model::new(config, weights).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let collective = Rank {
        number: rank,
        group,
        started: Mutex::new(0),
        log: log.clone(),
        delay,
    };
    let mut cache = model.cache(0);
    let (mut ids, mut from, mut last, mut first_log) = (prompt.to_vec(), 0, Vec::new(), Vec::new());
    for step in 0..=new {
        let out = no_grad(|| {
            let mut ctx = model.sequence_context(&ids[from..], &mut *cache, Compute::F32).unwrap();
            ctx.collective = &collective;
            let hidden = model.hidden(&mut ctx).unwrap();
            model.logits(&hidden, Compute::F32).unwrap().to_f32()
        });
        last = out[out.len() - VOCABULARY..].to_vec();
        if step == 0 {
            first_log.clone_from(&log.lock().unwrap());
        }
        from = ids.len();
        if step < new {
            ids.push(ounce_model::top_k(&last, 1)[0] as u32);
        }
    }
    (ids, last, first_log)
}

fn no_delay(_rank: usize, _number: usize) -> u64 {
    0
}

/// Up to half a millisecond, different for every rank and sum.
fn scattered(rank: usize, number: usize) -> u64 {
    ((number * 37 + rank * 101) % 11) as u64 * 50
}

#[test]
fn two_ranks_equal_one_for_every_wiring() {
    let prompt = ids(6, 8);
    for residual in [
        Residual::default(),
        Residual::Parallel {},
        Residual::Ladder { layers: None },
        ladder(&[1, 2]),
    ] {
        let shape = shape(&residual);
        let one = run_ranks(&shape, 1, &prompt, 32, no_delay).remove(0);
        let mut bits = None;
        for delay in [no_delay as fn(usize, usize) -> u64, scattered] {
            let two = run_ranks(&shape, 2, &prompt, 32, delay);
            for (ids, last, _) in &two {
                assert_eq!(ids, &one.0, "{residual:?}");
                assert!(worst(last, &one.1) < 1e-4, "{residual:?}");
            }
            assert_eq!(two[0].1, two[1].1, "ranks disagree: {residual:?}");
            let first = bits.get_or_insert_with(|| two[0].1.clone());
            assert_eq!(first, &two[0].1, "the network's delays change bits: {residual:?}");
        }
        let whole = logits(&model(&residual), &one.0, 1);
        assert!(worst(&one.1, &whole[whole.len() - VOCABULARY..]) < 1e-4);
    }
}

/// Sums that arrive late and out of order for 256 steps: four ranks, a head each.
#[test]
fn four_ranks_equal_one_after_many_steps() {
    let residual = Residual::Ladder { layers: None };
    let shape = ModelShape {
        kv_heads: Some(4),
        max_positions: 300,
        ..shape(&residual)
    };
    let prompt = ids(6, 9);
    let one = run_ranks(&shape, 1, &prompt, 256, no_delay).remove(0);
    let four = run_ranks(&shape, 4, &prompt, 256, scattered);
    assert_eq!(one.0.len(), 262);
    for (ids, last, _) in &four {
        assert_eq!(ids, &one.0);
        assert!(worst(last, &one.1) < 1e-3);
        assert_eq!(last, &four[0].1, "ranks disagree");
    }
}

#[test]
fn a_ladder_starts_the_next_sum_before_it_awaits_the_last_but_one() {
    let order = |residual: Residual| run_ranks(&shape(&residual), 1, &ids(3, 1), 0, no_delay).remove(0).2;
    let sums = 2 * LAYERS;
    // Start 0, start 1, await 0, start 2, await 1, …: while sub-block k computes, the sum of k - 1 is under way.
    let mut expected = vec![(true, 0)];
    for k in 1..sums {
        expected.extend([(true, k), (false, k - 1)]);
    }
    expected.push((false, sums - 1));
    assert_eq!(order(Residual::Ladder { layers: None }), expected);
    let sequential: Vec<_> = (0..sums).flat_map(|k| [(true, k), (false, k)]).collect();
    assert_eq!(order(Residual::default()), sequential);
    let parallel: Vec<_> = (0..LAYERS).flat_map(|k| [(true, k), (false, k)]).collect();
    assert_eq!(order(Residual::Parallel {}), parallel);
}

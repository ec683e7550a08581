//! Residual wirings: against oracles that keep every sub-block's output, across ranks, with a cache, and refused.

use ounce_model::{
    Batch, LadderLayers, Model, ModelConfig, Residual,
    config::ModelShape,
    weights::{FreshWeights, Weights},
};
use ounce_tensor::{Collective, Compute, Gradients, Pending, Tensor, no_grad, ops};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

const VOCABULARY: usize = 37;
const LAYERS: usize = 4;

fn shape(residual: &Residual) -> ModelShape {
    serde_json::from_value(json!({
        "hidden_size": 24, "layers": LAYERS, "heads": 4, "kv_heads": 2, "intermediate_size": 20,
        "initializer_range": 0.3, "max_positions": 64, "residual": residual,
    }))
    .unwrap()
}

fn ladder(layers: &[usize]) -> Residual {
    Residual::Ladder {
        layers: Some(LadderLayers::List(layers.to_vec())),
    }
}

/// Fresh weights of one seed: all wirings get the same, because names and shapes are the same.
fn model(residual: &Residual) -> Model {
    let config = shape(residual).to_config(VOCABULARY, None, None).unwrap();
    Model::new(config, &mut fresh()).unwrap()
}

fn fresh() -> FreshWeights {
    FreshWeights { seed: 5, std: 0.3 }
}

fn ids(n: usize, seed: usize) -> Vec<u32> {
    (0..n)
        .map(|i| ((i * i * 7 + i * 13 + seed * 5) % VOCABULARY) as u32)
        .collect()
}

fn logits(model: &Model, ids: &[u32], batch: usize) -> Vec<f32> {
    let input = Batch {
        ids,
        batch,
        compute: Compute::F32,
    };
    no_grad(|| model.forward(input)).unwrap().to_f32()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The stream of a plain Llama with the weights of `model`, in which sub-block k reads `s[reads(k)]`; `s[0]` is the
/// embedding and `s[k + 1] = s[k] + y_k`. Keeps every `s`. `model` must be sequential: its blocks give the sub-blocks.
struct Oracle {
    parts: Model,
}

impl Oracle {
    /// Sub-block k on a given stream: what its block adds to it when the other sub-block is silent.
    fn output(&self, k: usize, stream: &Tensor, ids: &[u32]) -> Tensor {
        let mut ctx = self
            .parts
            .context(
                Batch {
                    ids,
                    batch: 1,
                    compute: Compute::F32,
                },
                None,
            )
            .unwrap();
        let silenced = if k.is_multiple_of(2) { "down_proj" } else { "o_proj" };
        let mut weights = Silenced {
            inner: fresh(),
            silenced,
        };
        let alone = ounce_model::Block::new(&self.parts.config, k / 2, &mut weights).unwrap();
        let after = alone.forward(stream, &mut ctx).unwrap();
        ops::sub(&after, stream).unwrap()
    }

    fn logits(&self, reads: impl Fn(usize) -> usize, ids: &[u32]) -> Vec<f32> {
        no_grad(|| {
            let ctx = self
                .parts
                .context(
                    Batch {
                        ids,
                        batch: 1,
                        compute: Compute::F32,
                    },
                    None,
                )
                .unwrap();
            let mut s = vec![self.parts.embed(&ctx).unwrap()];
            for k in 0..2 * LAYERS {
                let y = self.output(k, &s[reads(k)], ids);
                s.push(ops::add(&s[k], &y).unwrap());
            }
            let hidden = self.parts.finish(&s[2 * LAYERS]).unwrap();
            self.parts.logits(&hidden, Compute::F32).unwrap().to_f32()
        })
    }
}

/// Weights with one matrix of every layer zero.
struct Silenced {
    inner: FreshWeights,
    silenced: &'static str,
}

impl Weights for Silenced {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ounce_model::Result<Tensor> {
        if name.contains(self.silenced) {
            return Ok(Tensor::zeros(shape));
        }
        self.inner.tensor(name, shape)
    }
}

/// Which stream sub-block k reads when these layers are ladder: the two-stream recurrence, written out.
fn two_streams(k: usize, ladder: &[usize]) -> usize {
    if ladder.contains(&(k / 2)) {
        k.saturating_sub(1)
    } else {
        k
    }
}

#[test]
fn all_layers_read_the_stream_of_two_outputs_ago() {
    let oracle = Oracle {
        parts: model(&Residual::default()),
    };
    let ids = ids(11, 1);
    let ours = logits(&model(&Residual::Ladder { layers: None }), &ids, 1);
    let theirs = oracle.logits(|k| k.saturating_sub(1), &ids);
    assert!(worst(&ours, &theirs) < 1e-4);
    // The oracle can tell wirings apart.
    let sequential = logits(&model(&Residual::default()), &ids, 1);
    assert!(worst(&sequential, &oracle.logits(|k| k, &ids)) < 1e-4);
    assert!(worst(&ours, &sequential) > 0.1);
}

#[test]
fn mixed_layers_follow_the_two_stream_recurrence() {
    let oracle = Oracle {
        parts: model(&Residual::default()),
    };
    let ids = ids(9, 2);
    for list in [
        vec![],
        vec![0],
        vec![3],
        vec![0, 3],
        vec![1, 2],
        vec![0, 2],
        vec![1, 3],
        vec![0, 1, 2, 3],
    ] {
        let ours = logits(&model(&ladder(&list)), &ids, 1);
        let theirs = oracle.logits(|k| two_streams(k, &list), &ids);
        assert!(worst(&ours, &theirs) < 1e-4, "{list:?}");
    }
}

#[test]
fn parallel_layers_read_one_stream() {
    let oracle = Oracle {
        parts: model(&Residual::default()),
    };
    let ids = ids(9, 3);
    let ours = logits(&model(&Residual::Parallel {}), &ids, 1);
    assert!(worst(&ours, &oracle.logits(|k| k - k % 2, &ids)) < 1e-4);
}

#[test]
fn without_attention_or_without_feed_forward_the_wirings_agree() {
    for silenced in ["o_proj", "down_proj"] {
        let run = |residual: Residual| {
            let config = shape(&residual).to_config(VOCABULARY, None, None).unwrap();
            let weights = &mut Silenced {
                inner: fresh(),
                silenced,
            };
            logits(&Model::new(config, weights).unwrap(), &ids(8, 4), 1)
        };
        let sequential = run(Residual::default());
        assert_eq!(run(Residual::Ladder { layers: None }), sequential);
        assert_eq!(run(Residual::Parallel {}), sequential);
        assert_eq!(run(ladder(&[1])), sequential);
    }
}

fn chosen() -> impl Strategy<Value = Residual> {
    prop_oneof![
        Just(Residual::Parallel {}),
        prop::sample::subsequence(vec![0, 1, 2, 3], 0..=4).prop_map(|list| ladder(&list)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any way of cutting a sequence into cached pieces gives the logits of a full forward, and a batch those of its rows.
    #[test]
    fn pieces_equal_the_whole_and_batches_their_rows(residual in chosen(), cuts in prop::collection::vec(1usize..5, 1..6)) {
        let model = model(&residual);
        let n: usize = cuts.iter().sum();
        let (a, b) = (ids(n, 6), ids(n, 7));
        let whole = logits(&model, &a, 1);
        let mut cache = model.cache(1, 0);
        let mut at = 0;
        for len in cuts {
            let input = Batch { ids: &a[at..at + len], batch: 1, compute: Compute::F32 };
            let last = no_grad(|| model.next_logits(input, &mut *cache)).unwrap().to_f32();
            at += len;
            prop_assert!(worst(&last, &whole[(at - 1) * VOCABULARY..at * VOCABULARY]) < 1e-4);
        }
        let both = logits(&model, &[a, b.clone()].concat(), 2);
        prop_assert!(worst(&both[..whole.len()], &whole) < 1e-5);
        prop_assert!(worst(&both[whole.len()..], &logits(&model, &b, 1)) < 1e-5);
    }
}

// ---- ranks ----

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

fn run_ranks(residual: &Residual, size: usize, prompt: &[u32], new: usize, delay: fn(usize, usize) -> u64) -> Vec<Ran> {
    let group = Arc::new(Ranks {
        size,
        table: Mutex::new(Table::default()),
        arrived: Condvar::new(),
    });
    let mut json = shape(residual).to_json(VOCABULARY, None, None);
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
    let mut cache = model.cache(1, 0);
    let (mut ids, mut from, mut last, mut first_log) = (prompt.to_vec(), 0, Vec::new(), Vec::new());
    for step in 0..=new {
        let input = Batch {
            ids: &ids[from..],
            batch: 1,
            compute: Compute::F32,
        };
        let out = no_grad(|| {
            let mut ctx = model.context(input, Some(&mut *cache)).unwrap();
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
        let one = run_ranks(&residual, 1, &prompt, 32, no_delay).remove(0);
        for delay in [no_delay as fn(usize, usize) -> u64, scattered] {
            let two = run_ranks(&residual, 2, &prompt, 32, delay);
            for (ids, last, _) in &two {
                assert_eq!(ids, &one.0, "{residual:?}");
                assert!(worst(last, &one.1) < 1e-4, "{residual:?}");
            }
            assert_eq!(two[0].1, two[1].1, "ranks disagree: {residual:?}");
        }
        let whole = logits(&model(&residual), &one.0, 1);
        assert!(worst(&one.1, &whole[whole.len() - VOCABULARY..]) < 1e-4);
    }
}

#[test]
fn a_ladder_starts_the_next_sum_before_it_awaits_the_last_but_one() {
    let order = |residual: Residual| run_ranks(&residual, 1, &ids(3, 1), 0, no_delay).remove(0).2;
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

// ---- gradients ----

/// Fresh weights in f64, with one element of one tensor moved.
struct Doubles {
    inner: FreshWeights,
    moved: Option<(String, usize, f64)>,
}

impl Weights for Doubles {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> ounce_model::Result<Tensor> {
        let mut values: Vec<f64> = self
            .inner
            .tensor(name, shape)?
            .to_f32()
            .into_iter()
            .map(f64::from)
            .collect();
        if let Some((moved, at, delta)) = &self.moved
            && moved == name
        {
            values[*at] += delta;
        }
        Ok(Tensor::new(values, shape)?)
    }
}

#[test]
fn gradients_agree_with_finite_differences_in_f64() {
    let ids = ids(5, 9);
    let targets: Vec<i64> = ids.iter().rev().map(|&id| i64::from(id)).collect();
    for residual in [ladder(&[0, 1, 2, 3]), ladder(&[1, 2]), Residual::Parallel {}] {
        let config = shape(&residual).to_config(VOCABULARY, None, None).unwrap();
        let build = |moved| Model::new(config.clone(), &mut Doubles { inner: fresh(), moved }).unwrap();
        let loss = |model: &Model| {
            let input = Batch {
                ids: &ids,
                batch: 1,
                compute: Compute::F32,
            };
            let mut ctx = model.context(input, None).unwrap();
            ctx.cos = widen(&ctx.cos);
            ctx.sin = widen(&ctx.sin);
            let hidden = model.hidden(&mut ctx).unwrap();
            ops::linear_cross_entropy(&hidden, model.head(), &targets, Compute::F32).unwrap()
        };
        let mut model = build(None);
        model.visit(&mut |p| p.tensor = p.tensor.requires_grad());
        let mut gradients = Gradients::new();
        loss(&model).backward(&mut gradients).unwrap();
        let mut checked = 0;
        model.visit(&mut |p| {
            let gradient = gradients.get(&p.tensor).unwrap().values::<f64>().unwrap().to_vec();
            // A few elements of every tensor.
            for at in [0, gradient.len() / 2, gradient.len() - 1] {
                let h = 1e-5;
                let up = loss(&build(Some((p.name.clone(), at, h)))).item().unwrap();
                let down = loss(&build(Some((p.name.clone(), at, -h)))).item().unwrap();
                let numeric = (up - down) / (2.0 * h);
                assert!(
                    (gradient[at] - numeric).abs() < 1e-6 * (1.0 + numeric.abs()),
                    "{} [{at}]: {} {numeric}",
                    p.name,
                    gradient[at]
                );
                checked += 1;
            }
        });
        assert!(checked > 100);
    }
}

fn widen(t: &Tensor) -> Tensor {
    t.cast(ounce_tensor::DType::F64).unwrap()
}

// ---- configuration ----

fn parse(change: impl Fn(&mut Value)) -> Result<ModelConfig, String> {
    let mut json = shape(&ladder(&[1, 2])).to_json(VOCABULARY, None, None);
    change(&mut json);
    ModelConfig::parse("config.json", &json).map_err(|e| format!("{e} | {}", e.hint().unwrap_or_default()))
}

#[test]
fn bad_lists_are_refused_with_key_rule_and_hint() {
    let error = |layers: Value| parse(|json| json["ladder_layers"] = layers.clone()).unwrap_err();
    let hint = "an integer n is the last n layers, a list names layers from 0";
    assert_eq!(
        error(json!([0, 4])),
        format!("config.json: key \"ladder_layers\": layer 4 is beyond the model, whose layers are 0..=3 | {hint}")
    );
    assert!(error(json!([1, 1])).contains("layer 1 is listed twice"));
    assert!(error(json!(9)).contains("the last 9 layers of a model that has 4"));
    assert!(error(json!(-2)).contains("must be a whole number or a list of layers"));
}

#[test]
fn a_ladder_is_never_loaded_as_a_plain_llama() {
    let error = parse(|json| json["model_type"] = "llama".into()).unwrap_err();
    assert!(
        error.contains("key \"ladder_layers\"") && error.contains("llamaLadder"),
        "{error}"
    );
    // Nor by programs that look at the architecture.
    let written = shape(&ladder(&[1])).to_json(VOCABULARY, None, None);
    assert_eq!(written["architectures"], json!(["LlamaLadderForCausalLM"]));
    assert_eq!(written["model_type"], "llamaLadder");
    let parallel = shape(&Residual::Parallel {}).to_json(VOCABULARY, None, None);
    assert_eq!(parallel["model_type"], "ounce_parallel");
    // No list at all is a standard model, and so is an empty one.
    for standard in [json!(null), json!([]), json!(0)] {
        let config = parse(|json| json["ladder_layers"] = standard.clone()).unwrap();
        assert!(
            config
                .layers
                .iter()
                .all(|l| l.wiring == ounce_model::Wiring::Sequential)
        );
    }
}

#[test]
fn recipes_refuse_unknown_keys_mixtures_and_lists_beyond_the_model() {
    let mut mixture = shape(&ladder(&[0]));
    (mixture.experts, mixture.experts_per_token) = (Some(4), Some(2));
    let error = mixture.to_config(VOCABULARY, None, None).unwrap_err().to_string();
    assert!(
        error.contains("key \"model.residual\"") && error.contains("dense"),
        "{error}"
    );
    let beyond = Residual::Ladder {
        layers: Some(LadderLayers::Last(LAYERS + 1)),
    };
    let error = shape(&beyond)
        .to_config(VOCABULARY, None, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the last 5 layers of a model that has 4"), "{error}");
    for unknown in [json!({"wiring": "parallel", "layers": 2}), json!({"wiring": "braid"})] {
        assert!(serde_json::from_value::<Residual>(unknown).is_err());
    }
}

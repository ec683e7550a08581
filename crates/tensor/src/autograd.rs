//! The tape: nodes made by operations, walked backwards from a loss.
//!
//! A node's id grows with its creation, so descending ids are a topological order: the walk is deterministic and each
//! node's saved values are freed as soon as it has been visited.

use crate::{
    error::{Result, shape},
    storage::DType,
    tensor::Tensor,
};
use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Gradient of the inputs, given the gradient of the output, which inputs need one, and the map for side effects
/// (activation checkpointing adds parameter gradients to it directly).
type BackwardFn = Box<dyn FnOnce(Tensor, &[bool], &mut Gradients) -> Result<Vec<Option<Tensor>>> + Send>;

pub(crate) struct Node {
    id: u64,
    inputs: Vec<Option<Arc<Node>>>,
    /// `None` for leaves, and for nodes already visited.
    backward: Mutex<Option<BackwardFn>>,
    leaf: bool,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
}

/// Runs `f` without recording anything on the tape of this thread.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            RECORDING.with(|r| r.set(self.0));
        }
    }
    let _restore = Restore(RECORDING.with(|r| r.replace(false)));
    f()
}

/// Gradients by leaf. Accumulates: `backward` may be called with the same map for several micro-batches.
#[derive(Default)]
pub struct Gradients {
    by_node: HashMap<u64, Tensor>,
}

impl Gradients {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// The gradient of a leaf, if any operation of the walk reached it.
    pub fn get(&self, leaf: &Tensor) -> Option<&Tensor> {
        self.by_node.get(&leaf.node.as_ref()?.id)
    }

    /// Takes the gradient of a leaf out of the map.
    pub fn take(&mut self, leaf: &Tensor) -> Option<Tensor> {
        self.by_node.remove(&leaf.node.as_ref()?.id)
    }

    /// Number of leaves with a gradient.
    pub fn len(&self) -> usize {
        self.by_node.len()
    }

    /// Is there no gradient at all?
    pub fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }

    fn add(&mut self, id: u64, gradient: Tensor) -> Result<()> {
        let sum = match self.by_node.remove(&id) {
            None => gradient,
            Some(sum) => add_gradients(sum, &gradient)?,
        };
        self.by_node.insert(id, sum);
        Ok(())
    }
}

/// `a + b`, in place where nobody else looks at `a`.
fn add_gradients(mut a: Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape != b.shape {
        return shape(
            "gradient",
            "all gradients of a tensor have its shape",
            (&a.shape, &b.shape),
        );
    }
    if a.dtype() == DType::F64 {
        let other = b.get::<f64>("gradient")?;
        if let Some(values) = a.values_mut::<f64>() {
            ounce_kernels::add_assign(values, other);
            return Ok(a);
        }
    } else {
        let other = b.get::<f32>("gradient")?;
        if let Some(values) = a.values_mut::<f32>() {
            ounce_kernels::add_assign(values, other);
            return Ok(a);
        }
    }
    crate::ops::add(&a, b)
}

impl Tensor {
    /// The same values as a new leaf: gradients will be collected for it.
    pub fn requires_grad(&self) -> Tensor {
        let node = Node {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            inputs: Vec::new(),
            backward: Mutex::new(None),
            leaf: true,
        };
        Tensor {
            node: Some(Arc::new(node)),
            ..self.clone()
        }
    }

    /// Would an operation on this tensor be recorded?
    pub fn needs_grad(&self) -> bool {
        self.node.is_some() && RECORDING.with(Cell::get)
    }

    /// Attaches the gradient of the operation that made `self` out of `inputs`; nothing is recorded (and `backward` is
    /// dropped) unless an input needs a gradient. `backward` gets the gradient of the output and, per input, whether
    /// its gradient is wanted; it returns one entry per input.
    #[must_use]
    pub fn recorded(
        mut self,
        inputs: &[&Tensor],
        backward: impl FnOnce(Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + Send + 'static,
    ) -> Tensor {
        if inputs.iter().any(|t| t.needs_grad()) {
            self.node = Some(record(inputs, Box::new(move |dy, needs, _| backward(dy, needs))));
        }
        self
    }

    /// Gradients of this scalar with respect to every leaf it depends on, added into `gradients`.
    ///
    /// # Errors
    /// If the tensor has more than one element, or an operation's gradient fails.
    pub fn backward(&self, gradients: &mut Gradients) -> Result<()> {
        if self.numel() != 1 {
            return shape("backward", "a scalar loss", &self.shape);
        }
        let one = match self.dtype() {
            DType::F64 => Tensor::owned(vec![1f64], &self.shape),
            _ => Tensor::owned(vec![1f32], &self.shape),
        };
        self.backward_from(one, gradients)
    }

    /// Like [`Tensor::backward`] for any shape, starting from the gradient `dy` of this tensor.
    ///
    /// # Errors
    /// If an operation's gradient fails.
    pub fn backward_from(&self, dy: Tensor, gradients: &mut Gradients) -> Result<()> {
        let Some(root) = &self.node else { return Ok(()) };
        // Pending nodes by id; the highest id is always safe to visit, because all users of a node are younger than it.
        let mut pending: BTreeMap<u64, (Arc<Node>, Tensor)> = BTreeMap::new();
        pending.insert(root.id, (root.clone(), dy));
        while let Some((id, (node, dy))) = pending.pop_last() {
            if node.leaf {
                gradients.add(id, dy)?;
                continue;
            }
            let taken = node.backward.lock().ok().and_then(|mut slot| slot.take());
            let Some(backward) = taken else {
                return shape("backward", "each graph is walked once", "a node visited before");
            };
            let needs: Vec<bool> = node.inputs.iter().map(Option::is_some).collect();
            let input_gradients = backward(dy, &needs, gradients)?;
            for (input, gradient) in node.inputs.iter().zip(input_gradients) {
                let (Some(input), Some(gradient)) = (input, gradient) else {
                    continue;
                };
                let sum = match pending.remove(&input.id) {
                    None => gradient,
                    Some((_, sum)) => add_gradients(sum, &gradient)?,
                };
                pending.insert(input.id, (input.clone(), sum));
            }
        }
        Ok(())
    }
}

fn record(inputs: &[&Tensor], backward: BackwardFn) -> Arc<Node> {
    Arc::new(Node {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        inputs: inputs.iter().map(|t| t.node.clone()).collect(),
        backward: Mutex::new(Some(backward)),
        leaf: false,
    })
}

/// Activation checkpointing: runs `f(input)` without a tape and runs it again during the backward walk, so that only
/// its input is kept. Leaves that `f` captures (parameters) get their gradients too. `f` must give the same result both
/// times: its randomness must be counter-based.
///
/// # Errors
/// Whatever `f` returns.
pub fn checkpoint(input: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static) -> Result<Tensor> {
    let output = no_grad(|| f(&input.detach()))?;
    Ok(recomputed(input, &output, f))
}

/// [`checkpoint`] for a value at hand: `output` must be what `f(input)` gives. `f` runs in the backward walk only.
#[must_use]
pub fn recomputed(input: &Tensor, output: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static) -> Tensor {
    let mut output = output.detach();
    if RECORDING.with(Cell::get) {
        let saved = input.detach();
        let backward: BackwardFn = Box::new(move |dy, _, gradients| {
            let leaf = saved.requires_grad();
            f(&leaf)?.backward_from(dy, gradients)?;
            Ok(vec![gradients.take(&leaf)])
        });
        output.node = Some(record(&[input], backward));
    }
    output
}

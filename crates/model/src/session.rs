//! Sequences on a model: the one way to generate.
//!
//! A session owns the memory of any number of sequences, each in its slot. Greedy text, chat, batched serving, speculation
//! and evaluation are its users. What a sequence computes depends on its own tokens only: in f32 its bits are the same alone
//! and among others, whatever the others do and when they come and go. For this, steps of several sequences are computed
//! [`Compute::F32Rows`], and prompts one sequence at a time.

use crate::{
    cache::Cache,
    error::{ModelError, Result},
    model::Model,
};
use ounce_tensor::{Compute, Tensor, no_grad};

/// Names a sequence of a session. It is never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(u64);

/// See the module.
pub struct Session<'m> {
    model: &'m Model,
    /// Arithmetic of prompts.
    compute: Compute,
    /// Ordered by id.
    slots: Vec<(SlotId, Box<dyn Cache>)>,
    next: u64,
}

impl<'m> Session<'m> {
    /// A session without sequences. Prompts are computed as `compute` says; steps always multiply 16-bit weights exactly, in
    /// f32: their time is the time to read the weights, so that rounding activations to bf16 would cost accuracy and gain
    /// nothing.
    pub fn new(model: &'m Model, compute: Compute) -> Self {
        Self {
            model,
            compute,
            slots: Vec::new(),
            next: 0,
        }
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// A new sequence without tokens; memory for `reserve` tokens may be had at once.
    pub fn open(&mut self, reserve: usize) -> SlotId {
        let cache = self.model.cache(reserve);
        self.insert(cache)
    }

    /// A new sequence with the same tokens.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn fork(&mut self, slot: SlotId) -> Result<SlotId> {
        let copy = self.get(slot)?.snapshot();
        Ok(self.insert(copy))
    }

    fn insert(&mut self, cache: Box<dyn Cache>) -> SlotId {
        let slot = SlotId(self.next);
        self.next += 1;
        self.slots.push((slot, cache));
        slot
    }

    fn place(&self, slot: SlotId) -> Result<usize> {
        match self.slots.binary_search_by_key(&slot, |(id, _)| *id) {
            Ok(place) => Ok(place),
            Err(_) => Err(ModelError::Cache(format!(
                "there is no sequence {}: it was closed",
                slot.0
            ))),
        }
    }

    fn get(&self, slot: SlotId) -> Result<&dyn Cache> {
        Ok(&*self.slots[self.place(slot)?].1)
    }

    fn get_mut(&mut self, slot: SlotId) -> Result<&mut dyn Cache> {
        let place = self.place(slot)?;
        Ok(&mut *self.slots[place].1)
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn tokens(&self, slot: SlotId) -> Result<usize> {
        Ok(self.get(slot)?.len())
    }

    /// Bytes of all sequences.
    pub fn bytes(&self) -> usize {
        self.slots.iter().map(|(_, cache)| cache.bytes()).sum()
    }

    /// Forgets a sequence and frees its memory.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn close(&mut self, slot: SlotId) -> Result<()> {
        let place = self.place(slot)?;
        self.slots.remove(place);
        Ok(())
    }

    /// Forgets the tokens of a sequence from position `to` on.
    ///
    /// # Errors
    /// If there is no such sequence, it has fewer tokens, or its attention method has compressed or forgotten what it would
    /// need; the sequence is then as before.
    pub fn rollback(&mut self, slot: SlotId, to: usize) -> Result<()> {
        self.get_mut(slot)?.truncate(to)
    }

    /// Reads `ids` into a sequence: logits `[1,V]` after the last.
    ///
    /// # Errors
    /// If there is no such sequence, there are no ids, one is outside the vocabulary or the memory refuses.
    pub fn prefill(&mut self, slot: SlotId, ids: &[u32]) -> Result<Tensor> {
        let (model, compute) = (self.model, self.compute);
        let cache = self.get_mut(slot)?;
        no_grad(|| model.prefill(ids, compute, cache))
    }

    /// One decoding step of several sequences, a token each: logits `[n,V]`.
    ///
    /// # Errors
    /// As [`Session::verify`].
    pub fn step(&mut self, tokens: &[(SlotId, u32)]) -> Result<Tensor> {
        let drafted: Vec<(SlotId, &[u32])> = tokens
            .iter()
            .map(|(slot, id)| (*slot, std::slice::from_ref(id)))
            .collect();
        self.verify(&drafted)
    }

    /// Reads some tokens into each of several sequences, as many decoding steps would: logits `[N,V]` after each of them,
    /// sequence after sequence. What turns out unwanted is taken back with [`Session::rollback`].
    ///
    /// # Errors
    /// If there is no such sequence, one is named twice, an id is outside the vocabulary or a memory refuses.
    pub fn verify(&mut self, drafted: &[(SlotId, &[u32])]) -> Result<Tensor> {
        let places = drafted
            .iter()
            .map(|(slot, _)| self.place(*slot))
            .collect::<Result<Vec<_>>>()?;
        let mut free: Vec<Option<&mut Box<dyn Cache>>> = self.slots.iter_mut().map(|(_, cache)| Some(cache)).collect();
        let mut caches: Vec<&mut dyn Cache> = Vec::with_capacity(drafted.len());
        for (place, (slot, _)) in places.into_iter().zip(drafted) {
            match free[place].take() {
                Some(cache) => caches.push(&mut **cache),
                None => return Err(ModelError::Cache(format!("sequence {} takes part twice", slot.0))),
            }
        }
        let ids: Vec<u32> = drafted.iter().flat_map(|(_, ids)| *ids).copied().collect();
        let lengths: Vec<usize> = drafted.iter().map(|(_, ids)| ids.len()).collect();
        no_grad(|| {
            let mut ctx = self.model.ragged_context(&ids, &lengths, caches, Compute::F32Rows)?;
            let hidden = self.model.hidden(&mut ctx)?;
            self.model.logits(&hidden, Compute::F32Rows)
        })
    }
}

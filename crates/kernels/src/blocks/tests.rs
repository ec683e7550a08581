//! Golden blocks: random bytes with finite scales, widened by the `gguf` Python package (whose tests hold it to GGML's C
//! code bit for bit); here as a hash over all bits, and some values so that a failure says where to look.

use super::*;
use crate::{supported, with_isa};

struct Golden {
    kind: BlockKind,
    /// Two blocks, in hexadecimal.
    blocks: &'static str,
    /// FNV-1a of the little-endian bytes of all values.
    hash: u64,
    /// Some of the values: number and bits.
    some: &'static [(usize, u32)],
}

const GOLDEN: [Golden; 8] = [
    Golden {
        kind: BlockKind::Q4_0,
        blocks: "4c22e5f1a94106a0956a26afbccdafe562f966c35f5693c642276ad5ab2da7394551370e",
        hash: 0x041e_2701_9e08_fdeb,
        some: &[
            (0, 0xbd17_2000),
            (1, 0xbdb0_5000),
            (16, 0x3d97_2000),
            (31, 0x3db0_5000),
            (49, 0x4131_9000),
            (63, 0x41ec_c000),
        ],
    },
    Golden {
        kind: BlockKind::Q4_1,
        blocks: "4c22f6b43427fa48d732a1df70aca1e92611590166c3f92c8f063cd25e19a621f9bd0ccc21397c1e",
        hash: 0x4db7_b880_90f2_026b,
        some: &[
            (0, 0xbe85_9000),
            (1, 0xbe65_5800),
            (16, 0xbe8b_dc00),
            (31, 0xbe9e_c000),
            (49, 0x3d9f_2000),
            (63, 0xc067_c700),
        ],
    },
    Golden {
        kind: BlockKind::Q5_0,
        blocks: "4c22ca7748dc03d17a88934d85527357a2e64647f03e66c31f223f4192c58efd5185f0711ef7677a1f132a81",
        hash: 0xec55_f10c_a649_1b3c,
        some: &[
            (0, 0xbe23_b800),
            (1, 0x3c49_8000),
            (16, 0xbe49_8000),
            (31, 0x3d17_2000),
            (49, 0xc231_9000),
            (63, 0x41ec_c000),
        ],
    },
    Golden {
        kind: BlockKind::Q5_1,
        blocks: "4c22f6b4a100b28d6b236b82481bd9fe630dc3ce3be4ebca66c3f92c5223479f6e794d57037e2cfde9e15a7789781e37",
        hash: 0xac84_e17b_f27d_82c2,
        some: &[
            (0, 0x3cb4_4000),
            (1, 0xbe8b_dc00),
            (16, 0xbe71_f000),
            (31, 0x3d0c_8000),
            (49, 0xc2aa_0238),
            (63, 0xc28c_6a38),
        ],
    },
    Golden {
        kind: BlockKind::Q8_0,
        blocks: "4c2257d8e5a703296dcb81db3f65cf9c1bdc5d1d8fc83f0b0bb4db71be572209851d66c3f4c0cf83fe4363f82f475977\
                 8955f6ced681cbea7179ced2c8f814a13472ff70",
        hash: 0x2959_1129_271b_f351,
        some: &[
            (0, 0x3f88_f500),
            (1, 0xbefb_e000),
            (16, 0x3f92_6700),
            (31, 0x3eb6_9c00),
            (49, 0x43ea_e680),
            (63, 0xc3cf_2800),
        ],
    },
    Golden {
        kind: BlockKind::Q4K,
        blocks: "4c22f6b485452a44f318337f08cd1e614f235d3f83bc45fee9ee0403a79be118544441317c9311f85e0429b19f7ec0e1\
                 56f65a3322e791b880ee995e3f0d307d2fbaf400693a179e0d027ed4e58be7a9ebc28a271d43a78855638144eb6603f7\
                 b2725de11fe6ac2f88a68182869793f0aad6ded8116e3ab51681c4a374fec70a68b3e4bdc92b387987416c17ec90963e\
                 66c3f92cb4b80eba7c5cfd81121bea9cee1810dfd5169faf26cd7b5c30c8aba44d972299e8c7b41b9a1d2b0f180600a9\
                 74d63b6332202c998e82b2522c49c4394c7d73265b6aaf61b288fbd0aecfa766616223611e764c93aa388ffabd0a6a64\
                 12b209971e2d827076f7e49ab8fa197271be53a3442b128cdad72bad0f8aeef42a0b9a26d74fc78f2562b8701097a55b",
        hash: 0x8a9c_7038_dd44_3192,
        some: &[
            (0, 0x4185_e210),
            (1, 0x417f_f5a0),
            (128, 0x41a2_5a80),
            (255, 0x40ee_5a40),
            (273, 0xc4a8_e5ae),
            (511, 0xc44c_40e1),
        ],
    },
    Golden {
        kind: BlockKind::Q5K,
        blocks: "4c22f6b427ed600de3200a6749307fd37899c118819af6674394c3f7aa5f93f32c810a37ca7bf1013ccdf8ab8ab4a603\
                 9954e84cbe3b3f7f1183c3df8375c517b4e786a9aadf7488f892b12191387ad86aca56d8531c927b931fe8f16e795b9b\
                 331767e712dbe8f5331dd9917f01e64710dd3c25f4d21690a049453135550ec0193a8bed1783d53ec944658d1d28960c\
                 44b0382e93438e60788d51e279a131f8130b3ea4bd2f5d95e57bd791436d840f66c3f92c8135bbfb885d346959a49b36\
                 402a4f3dcc489fb6511fbe09e5d72bf834e04fe028ca4991e02abd77279fedc206d2318ca8b8287a6f4b795209575d72\
                 77d456c0f6e81a0e584d730660f56bb8b588475f7066c1cd7109c5079a933ee857db751ff223726ad90697f749f7c61b\
                 d80163a8c9a356ba91d79f6d24ee3a14ebd41386d8faef6e9e6c70df41dba9aeb5301e5824b7db0e504f1d9706869347\
                 68f005af0d5a23ddb465fc5a489b43e7",
        hash: 0x5fb8_e827_031b_4294,
        some: &[
            (0, 0x4172_b3a0),
            (1, 0x41a3_8f40),
            (128, 0x418f_2700),
            (255, 0x410f_de00),
            (273, 0xc176_b200),
            (511, 0xc5bb_51af),
        ],
    },
    Golden {
        kind: BlockKind::Q6K,
        blocks: "6ea3e384969be487a440e7c3ea5204cabbf9bfe8e648caff7704ac26d227a069c392f4eeb361c24ef366530178b47993\
                 3822c3c0cf6b3cbeb4af7ecff21cd3a408f80223e393ddd808453d6bad90efd8aba2b4d096226df8d446a703fcb2bddd\
                 d8e1e2a09a633f7c349903cb463dc4f3ea335483e56f64168344d1b96b410c3bade3f6390f4a62312e48d232ddc3f3e8\
                 48e3f55cb7e22d1bad8ded2dd7fb1065837b97585cae654f2c42b8f27265d7ddd7eec5923eb486fc6bb30e571a963723\
                 32a38245e6a7dc162ddcb8f3d54a0f384c22c9719952c3338026fbfa0adf76282c4bf9838c2557f3b7246b852bab20e6\
                 04ae83e5385d98c4690126be98f09c9384aaa5945fc3d3d4e1e6386dbe5b1df267ebd0e0f0a3d85f5fa461698f35e2b6\
                 b9f839ecdb83b5184e549711f50a853f3b46146e3201a92959ecfe84886a928a82af70f39304ebbe937c4140821f57c9\
                 e09458ce1d9b09ae70372dad1acf5c4f1bf192b701b682225ceb2ea1b0b2cbebdc33b8f80cbf564cb39c2a558b53769e\
                 1763f565d2e329bb4b06f233bc2f422be3f0fa0cdd682f78c6268136c5d5ae4ceedf66c3",
        hash: 0x714c_06b5_9456_2cd1,
        some: &[
            (0, 0xbf9d_6c00),
            (1, 0x413a_f040),
            (128, 0x4154_8500),
            (255, 0xc19f_c880),
            (273, 0xc452_db00),
            (511, 0x453e_bdb0),
        ],
    },
];

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<char> = hexadecimal.chars().filter(|c| !c.is_whitespace()).collect();
    let number = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(number).collect()
}

fn hash(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[test]
fn blocks_widen_to_the_bits_of_ggml_on_every_instruction_set() {
    for golden in &GOLDEN {
        let bytes = bytes(golden.blocks);
        for isa in supported() {
            let mut values = vec![0.0; 2 * golden.kind.values()];
            with_isa(isa, || widen_blocks(golden.kind, &bytes, &mut values));
            for &(i, bits) in golden.some {
                let want = f32::from_bits(bits);
                assert_eq!(values[i].to_bits(), bits, "{:?} {isa:?} value {i}: {want}", golden.kind);
            }
            assert_eq!(hash(&values), golden.hash, "{:?} {isa:?}", golden.kind);
        }
    }
}

#[test]
fn any_part_of_blocks_is_the_part_of_the_whole() {
    for golden in &GOLDEN {
        let bytes = bytes(golden.blocks);
        let blocks = Blocks::new(golden.kind, &bytes);
        let mut whole = vec![0.0; blocks.len()];
        widen_blocks(golden.kind, &bytes, &mut whole);
        for start in [
            0,
            1,
            golden.kind.values() - 1,
            golden.kind.values(),
            golden.kind.values() + 5,
        ] {
            for len in [0, 1, 3, golden.kind.values() / 2, whole.len() - start] {
                let len = len.min(whole.len() - start);
                let mut part = vec![0.0; len];
                blocks.widen_from(start, &mut part);
                assert_eq!(part, whole[start..][..len], "{:?} {start} {len}", golden.kind);
            }
        }
        assert_eq!(blocks.get(7).to_bits(), whole[7].to_bits());
    }
}

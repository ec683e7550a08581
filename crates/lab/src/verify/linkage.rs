//! `merge` cases without a model: clustering of points, exact ties included.

use super::{Checks, VerifyError, rows};
use ounce_compress::{cluster::Linkage, cluster::agglomerate, geometry::Geometry};
use ounce_formats::SafetensorsFile;
use std::path::Path;

/// Heights are f64 on both sides.
const HEIGHTS: f64 = 1e-9;

pub(super) fn run(dir: &Path, checks: &mut Checks) -> Result<(), VerifyError> {
    let expected = SafetensorsFile::open(&dir.join("expected.safetensors"))?;
    let linkages = [
        ("average", Linkage::Average),
        ("complete", Linkage::Complete),
        ("single", Linkage::Single),
        ("ward_unsquared", Linkage::WardUnsquared),
    ];
    let mut instance = 0;
    while expected.contains(&format!("points.{instance}")) {
        let points = super::doubles(&expected, &format!("points.{instance}"))?;
        let n = rows(&expected, &format!("points.{instance}"))?;
        let geometry = Geometry::from_points(&points, n).map_err(|e| VerifyError::Case(e.to_string()))?;
        for (name, linkage) in linkages {
            let labels_name = format!("labels.{instance}.{name}");
            if !expected.contains(&labels_name) {
                continue;
            }
            let theirs = expected.view(&labels_name)?.to_i64_vec()?;
            let tree = agglomerate(&geometry, linkage);
            let mut ours = Vec::new();
            for r in 1..=n {
                let grouping = tree.cut(r).map_err(|e| VerifyError::Case(e.to_string()))?;
                ours.extend(grouping.labels().iter().map(|&l| l as i64));
            }
            checks.equal(
                labels_name,
                ours == theirs,
                format!("{ours:?} where {theirs:?} is expected"),
            );
            let heights_name = format!("heights.{instance}.{name}");
            if expected.contains(&heights_name) {
                let theirs = super::doubles(&expected, &heights_name)?;
                let scale = theirs.iter().fold(1f64, |m, h| m.max(h.abs()));
                let worst = super::worst(&tree.heights(), &theirs);
                checks.close(heights_name, worst / scale, HEIGHTS);
            }
        }
        instance += 1;
    }
    Ok(())
}

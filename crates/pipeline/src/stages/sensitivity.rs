//! The stage that measures sensitivities, when the config asks for it.

use zeropoint_core::Fingerprint;
use zeropoint_evaluator::report::Sensitivity;
use zeropoint_evaluator::tasks::loss_unit;
use zeropoint_models::{FloatParts, ModelParts};
use zeropoint_observer::StatisticsFile;
use zeropoint_quantizer::LayerScheme;

use super::Work;
use crate::PipelineError;
use crate::sensitivity::{Sensitivities, units};

impl Work<'_> {
    /// What quantising each group of Linears alone costs, when the config asks for it; each by the scheme of its first.
    pub(super) fn sensitivity(
        &self,
        graph: &FloatParts<'_>,
        model: Fingerprint,
        statistics: &StatisticsFile,
    ) -> Result<Vec<Sensitivity>, PipelineError> {
        let prepared = self.prepared;
        if !prepared.config.report.sensitivity {
            return Ok(Vec::new());
        }
        let spec = prepared.graph().spec();
        let scheme = |id: usize| prepared.plan.linears[id].scheme();
        let units = units(spec, &|id| scheme(id).is_some());
        let schemes: Vec<Vec<LayerScheme>> =
            units.iter().map(|unit| scheme(unit.linears[0]).copied().into_iter().collect()).collect();
        let float: &dyn ModelParts = graph;
        let (room, events, cancel) = (self.room(), self.events, self.cancel);
        let sensitivities = Sensitivities { prepared, float, statistics, room, events, cancel };
        let transforms = prepared.transformed.as_ref().map(|graph| graph.fingerprint().to_string());
        let key = Fingerprint::builder("measured graph")
            .field("model", model.to_string())
            .field("transforms", transforms.unwrap_or_default())
            .finish();
        let costs = sensitivities.measure(key, &units, &schemes, &self.options.cache)?;
        let unit = loss_unit(&spec.head().output).to_owned();
        let all = units.iter().zip(&schemes).zip(costs);
        Ok(all
            .filter_map(|((group, schemes), costs)| {
                let (layer, cost) = schemes.first().zip(costs.first())?;
                Some(Sensitivity {
                    linears: group.linears.iter().map(|id| spec.linears[*id].path.clone()).collect(),
                    scheme: layer.scheme.to_string(),
                    output_sqnr_db: cost.output_sqnr_db,
                    loss: cost.loss,
                    unit: unit.clone(),
                })
            })
            .collect())
    }
}

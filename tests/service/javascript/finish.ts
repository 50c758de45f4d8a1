// Finishes the study that STUDY names, with the client that was generated from the service's own OpenAPI document.

import { ask, report, study as look, tell } from "./generated";
import { client } from "./generated/client.gen";

const { URL: baseUrl, TOKEN: token, STUDY: study = "" } = process.env;
client.setConfig({ baseUrl, auth: () => token, throwOnError: true });

for (;;) {
  const { data: asked } = await ask({ path: { study }, body: { client_id: "node" }, throwOnError: true });
  if (asked.trials.length === 0) {
    break;
  }
  for (const { number, fence, params } of asked.trials) {
    const path = { study, number };
    const x = params.x as number;
    let value = 0;
    let answer = "continue";
    for (let step = 1; step <= 5 && answer === "continue"; step++) {
      value = (x - 2) * (x - 2) + (params.units as number) / step;
      const { data } = await report({ path, body: { fence, values: [{ step, value }] }, throwOnError: true });
      answer = data.answer;
    }
    const state = answer === "prune" ? "pruned" : "complete";
    await tell({ path, body: { fence, state, value, attrs: { language: "JavaScript" } }, throwOnError: true });
  }
}

const { data: finished } = await look({ path: { study }, throwOnError: true });
console.log(JSON.stringify(finished));

// a refusal is a problem document
const late = await tell({ path: { study, number: 0 }, body: { fence: 1, state: "complete", value: -1 }, throwOnError: false });
console.log(JSON.stringify(late.error));

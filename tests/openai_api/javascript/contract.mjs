// The contract of the endpoints as OpenAI's client for JavaScript sees it. Ends with code 0 if it is kept.
import assert from "node:assert/strict";
import OpenAI from "openai";

const { SLUICE_URL: baseURL, SLUICE_KEY: apiKey, SLUICE_MODEL: model, SLUICE_LACKS: lacks } = process.env;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "Good evening" }];
const missing = new Set(lacks.split(",").filter(Boolean));

async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    assert(error instanceof OpenAI.APIError, String(error));
    return error;
  }
  assert.fail("it was not refused");
}

async function offered(feature, ask, status) {
  if (!missing.has(feature)) return true;
  const error = await refusal(ask());
  assert.equal(error.status, status, feature);
  assert.equal(error.type, "invalid_request_error");
  assert(error.code && error.param, feature);
  return false;
}

const checks = {
  async "models are listed and found"() {
    const found = [];
    for await (const item of client.models.list()) found.push(item.id);
    assert.deepEqual(found, [model]);
    assert.equal((await client.models.retrieve(model)).id, model);
    assert((await refusal(client.models.retrieve("gpt-9"))) instanceof OpenAI.NotFoundError);
  },

  async "a chat comes back whole"() {
    const answer = await client.chat.completions.create({ model, messages, max_tokens: 3, temperature: 0 });
    assert.equal(answer.choices[0].finish_reason, "length");
    assert.equal(answer.usage.completion_tokens, 3);
  },

  async "a streamed chat says the same, with usage if asked"() {
    const asked = { model, messages, max_completion_tokens: 4, temperature: 0 };
    const whole = await client.chat.completions.create(asked);
    const stream = await client.chat.completions.create({
      ...asked, stream: true, stream_options: { include_usage: true },
    });
    let text = "";
    let usage;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, 4);
  },

  async "the streaming helper puts the message together"() {
    const final = await client.chat.completions.stream({ model, messages, max_tokens: 3 }).finalChatCompletion();
    assert.equal(typeof final.choices[0].message.content, "string");
  },

  async "tools are called or refused"() {
    const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object" } } }];
    const ask = () => client.chat.completions.create({ model, messages, tools });
    if (await offered("tools", ask, 400)) {
      const call = (await ask()).choices[0].message.tool_calls[0];
      assert.deepEqual(JSON.parse(call.function.arguments), { city: "Oslo" });
    }
  },

  async "text completions, embeddings and responses, or their refusal"() {
    const text = () => client.completions.create({ model, prompt: "Good", max_tokens: 3 });
    if (await offered("completions", text, 404)) assert.equal((await text()).usage.completion_tokens, 3);
    const embed = () => client.embeddings.create({ model, input: ["a", "b"] });
    if (await offered("embeddings", embed, 404)) assert.equal((await embed()).data[1].embedding.length, 3);
    const respond = (more) => client.responses.create({ model, input: "Good evening", ...more });
    if (await offered("responses", respond, 404)) {
      const whole = await respond({});
      let streamed = "";
      let last;
      for await (const event of await respond({ stream: true })) {
        if (event.type === "response.output_text.delta") streamed += event.delta;
        last = event.type;
      }
      assert.equal(streamed, whole.output_text);
      assert.equal(last, "response.completed");
    }
  },

  async "errors are of the client's classes and name the field"() {
    const wrong = await refusal(client.chat.completions.create({ model, messages, temperature: "warm" }));
    assert(wrong instanceof OpenAI.BadRequestError);
    assert.equal(wrong.param, "temperature");
    assert.equal(wrong.code, "invalid_type");
    const other = await refusal(client.chat.completions.create({ model: "gpt-9", messages }));
    assert(other instanceof OpenAI.NotFoundError);
    const stranger = new OpenAI({ baseURL, apiKey: "sk-wrong", maxRetries: 0 });
    const refused = await refusal(stranger.chat.completions.create({ model, messages }));
    assert(refused instanceof OpenAI.AuthenticationError);
  },

  async "who leaves a stream blocks nobody"() {
    for (let i = 0; i < 12; i++) {
      const stream = await client.chat.completions.create({ model, messages, max_tokens: 200, stream: true });
      for await (const _ of stream) break;
      stream.controller.abort();
    }
    assert.equal((await client.chat.completions.create({ model, messages, max_tokens: 2 })).choices.length, 1);
  },
};

for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`kept: ${name}`);
  } catch (error) {
    console.error(`broken: ${name}\n${error.stack}`);
    process.exitCode = 1;
  }
}

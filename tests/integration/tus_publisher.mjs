// Publishes a file of frames with tus-js-client, as any program in JavaScript would.
//
//   node tus_publisher.mjs ENDPOINT FILE CHUNK URLS [--stop-at BYTES] [--checksum] [--deferred]
//
// URLS is the file in which the client remembers its uploads, so that the next run goes on. One line of
// JSON tells what became of it. --stop-at leaves in the midst of the upload, without a word to the server.
import { createHash } from "node:crypto"
import { closeSync, createReadStream, openSync, readSync, statSync } from "node:fs"
import { createRequire } from "node:module"
import { PassThrough } from "node:stream"

const require = createRequire(process.env.TUS_JS_CLIENT)
const tus = require("tus-js-client")

const [endpoint, path, chunk, urls, ...flags] = process.argv.slice(2)
const chunkSize = Number(chunk)
const size = statSync(path).size
const stopAt = flags.includes("--stop-at") ? Number(flags[flags.indexOf("--stop-at") + 1]) : Infinity
const requests = { POST: 0, HEAD: 0, PATCH: 0, sent: 0, message: null }

function checksum(offset) {
  const part = Buffer.alloc(Math.min(chunkSize, size - offset))
  const file = openSync(path, "r")
  readSync(file, part, 0, part.length, offset)
  closeSync(file)
  return "sha256 " + createHash("sha256").update(part).digest("base64")
}

// Of a stream that is no file, the client does not know the length; it cannot be gone on with by another run.
const deferred = flags.includes("--deferred")
const source = deferred ? createReadStream(path).pipe(new PassThrough()) : createReadStream(path)

const upload = new tus.Upload(source, {
  endpoint,
  chunkSize,
  retryDelays: [100, 200, 400, 800, 1600],
  storeFingerprintForResuming: true,
  urlStorage: new tus.FileUrlStorage(urls),
  fingerprint: async () => `${path}-${size}`,
  uploadLengthDeferred: deferred,
  uploadSize: deferred ? null : size,
  headers: { "Idempotency-Key": "from-javascript" },
  metadata: { source: "a file of frames" },
  onBeforeRequest(request) {
    const method = request.getMethod()
    requests[method] += 1
    if (method === "PATCH" && flags.includes("--checksum")) {
      request.setHeader("Upload-Checksum", checksum(Number(request.getHeader("Upload-Offset"))))
    }
  },
  onAfterResponse(_request, response) {
    requests.message = response.getHeader("Tensorbus-Message") ?? requests.message
  },
  onChunkComplete(count, accepted) {
    requests.sent += count
    if (accepted >= stopAt) {
      console.log(JSON.stringify({ stopped: accepted, url: upload.url, ...requests }))
      process.exit(0)
    }
  },
  onError(error) {
    console.log(JSON.stringify({ error: String(error) }))
    process.exit(1)
  },
  onSuccess() {
    console.log(JSON.stringify({ url: upload.url, ...requests }))
  },
})

const previous = await upload.findPreviousUploads()
if (previous.length > 0) upload.resumeFromPreviousUpload(previous[0])
upload.start()

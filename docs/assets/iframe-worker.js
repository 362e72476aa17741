/* Search in a site that is opened from a folder: browsers refuse workers there, so the script runs in a hidden frame. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = "<!doctype html>"
      this.ready = new Promise((resolve, reject) => {
        frame.onload = () => {
          const inner = frame.contentWindow
          inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}))
          inner.importScripts = (...urls) => urls.reduce((before, one) => before.then(() => load(inner, one)), Promise.resolve())
          load(inner, new URL(url, document.baseURI).href).then(() => resolve(inner), reject)
        }
      })
      document.documentElement.append(frame)
    }
    postMessage(data) {
      this.ready.then(inner => inner.dispatchEvent(new inner.MessageEvent("message", {data})))
    }
  }
  const load = (inner, url) => new Promise((resolve, reject) => {
    const script = inner.document.createElement("script")
    Object.assign(script, {src: url, onload: resolve, onerror: reject})
    inner.document.body.append(script)
  })
}

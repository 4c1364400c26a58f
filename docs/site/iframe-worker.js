// Browsers start no worker from a file. In pages that are opened as files, a hidden frame does a worker's work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => Promise.all(urls.map((each) => load(frame.contentDocument, each)))
      this.inside = load(frame.contentDocument, url).then(() => inside)
    }

    async postMessage(data) {
      const inside = await this.inside
      inside.dispatchEvent(new inside.MessageEvent("message", { data }))
    }
  }
}

function load(page, url) {
  return new Promise((resolve, reject) => {
    const script = page.createElement("script")
    Object.assign(script, { src: url, onload: resolve, onerror: reject })
    page.body.append(script)
  })
}

// Keeps the page for use without a connection. The model and the runtime are put into the same cache by worker.js, once they were checked.
'use strict'

const CACHE = '{{ cache }}', SMALL = {{ small | tojson }}, OURS = CACHE.slice(0, CACHE.lastIndexOf('-'))

self.addEventListener('install', event => event.waitUntil(caches.open(CACHE).then(cache => cache.addAll(SMALL.map(url => new Request(url, {cache: 'no-cache'})))).then(() => self.skipWaiting())))
self.addEventListener('activate', event => event.waitUntil(caches.keys().then(names => Promise.all(names.filter(name => name.startsWith(`${OURS}-`) && name !== CACHE).map(name => caches.delete(name)))).then(() => self.clients.claim())))

// The page itself is asked for first, so that a newer one is seen; everything that it names carries its version and comes from the cache
self.addEventListener('fetch', event => {
  const {request} = event
  if (request.method !== 'GET' || !request.url.startsWith(self.registration.scope)) return
  const kept = () => caches.open(CACHE).then(cache => cache.match(request.mode === 'navigate' ? './' : request))
  if (request.mode === 'navigate') event.respondWith(fetch(request).catch(async error => (await kept()) ?? Promise.reject(error)))
  else event.respondWith(kept().then(found => found ?? fetch(request)))
})

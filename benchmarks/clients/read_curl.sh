# curl: /v1/extract with a file of a form.
curl --silent --fail --form "model=$CLIENT_MODEL" --form "file=@$CLIENT_IMAGE" "$CLIENT_URL/extract"

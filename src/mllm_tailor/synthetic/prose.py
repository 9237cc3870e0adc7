"""Plain sentences in six languages from short word lists: correct enough to read, too plain to guess."""

from __future__ import annotations

import random

from mllm_tailor.synthetic.words import words

VOCABULARY = {
    "uk": words(
        "the a this that our your each new small large open early late red quiet clean paper letter house road "
        "shop door window garden river market table book train station office price number order day week month "
        "year morning water bread light machine report page line answer question price list and or but with "
        "without from into over under after before near is was will can must has keeps takes brings reads writes "
        "sends pays opens closes finds counts changes"
    ),
    "my": words(
        "ini itu yang kita anda baru kecil besar buka awal lewat merah bersih kertas surat rumah jalan kedai pintu "
        "tingkap taman sungai pasar meja buku stesen pejabat harga nombor pesanan hari minggu bulan tahun pagi air "
        "roti lampu mesin laporan muka baris jawapan soalan dan atau tetapi dengan tanpa dari ke atas bawah "
        "selepas sebelum dekat ialah akan boleh mesti ada simpan ambil bawa baca tulis hantar bayar tutup cari "
        "kira tukar terima kasih sila"
    ),
    "de": words(
        "der die das ein eine dieser jede neu klein groß offen früh spät rot ruhig sauber Papier Brief Haus Straße "
        "Geschäft Tür Fenster Garten Fluss Markt Tisch Buch Zug Bahnhof Büro Preis Nummer Auftrag Tag Woche Monat "
        "Jahr Morgen Wasser Brot Licht Maschine Bericht Seite Zeile Antwort Frage und oder aber mit ohne von über "
        "unter nach vor bei ist war wird kann muss hat hält nimmt bringt liest schreibt sendet zahlt öffnet "
        "schließt findet zählt ändert für größer"
    ),
    "fr": words(
        "le la un une ce cette notre votre nouveau petit grand ouvert tôt tard rouge calme propre papier lettre "
        "maison rue boutique porte fenêtre jardin rivière marché table livre train gare bureau prix numéro "
        "commande jour semaine mois année matin eau pain lumière machine rapport page ligne réponse question et ou "
        "mais avec sans de dans sur sous après avant près est était sera peut doit a garde prend apporte lit écrit "
        "envoie paie ouvre ferme trouve compte change été à où"
    ),
    "es": words(
        "el la un una este esta nuestro su nuevo pequeño grande abierto temprano tarde rojo tranquilo limpio papel "
        "carta casa calle tienda puerta ventana jardín río mercado mesa libro tren estación oficina precio número "
        "pedido día semana mes año mañana agua pan luz máquina informe página línea respuesta pregunta y o pero "
        "con sin de en sobre bajo después antes cerca es era será puede debe ha guarda toma trae lee escribe envía "
        "paga abre cierra encuentra cuenta cambia más"
    ),
    "it": words(
        "il la un una questo questa nostro vostro nuovo piccolo grande aperto presto tardi rosso calmo pulito "
        "carta lettera casa strada negozio porta finestra giardino fiume mercato tavolo libro treno stazione "
        "ufficio prezzo numero ordine giorno settimana mese anno mattina acqua pane luce macchina rapporto pagina "
        "riga risposta domanda e o ma con senza di in sopra sotto dopo prima vicino è era sarà può deve ha tiene "
        "prende porta legge scrive invia paga apre chiude più così"
    ),
}


def sentence(rng: random.Random, language: str, length: int) -> str:
    """`length` words of one language (or country), with a figure or comma now and then, as a sentence."""
    chosen = rng.choices(VOCABULARY.get(language, VOCABULARY["uk"]), k=length)
    if length > 5 and rng.random() < 0.4:
        chosen[rng.randrange(1, length)] = str(rng.randint(1, 3000))
    if length > 7 and rng.random() < 0.6:
        chosen[rng.randrange(2, length - 2)] += rng.choice((",", ",", ";", ":", " -"))
    text = " ".join(chosen)
    return text[0].upper() + text[1:] + rng.choice((".", ".", ".", ".", "!", "?"))
